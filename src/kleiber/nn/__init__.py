"""Layers: attention, MLPs, mixtures of experts, output losses and parametrizations."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.nn.attention import FullAttention
    from kleiber.nn.loss import log_probs, target_weights
    from kleiber.nn.moe import counts_over_ranks
    from kleiber.nn.sharding import needs_other_ranks

EXPORTS = {
    "FullAttention": "attention",
    "WindowAttention": "window",
    "GatedDeltaNet": "delta",
    "LatentAttention": "latent",
    "GELU": "mlp",
    "ReLU2": "mlp",
    "SwiGLU": "mlp",
    "interleaved_moe": "moe",
    "load_balance_loss": "moe",
    "MuP": "mup",
    "StandardParametrization": "mup",
    "NoMixing": "patterns",
    "layer_pattern": "patterns",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
