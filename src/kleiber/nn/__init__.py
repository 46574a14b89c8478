"""Layers: attention, MLPs, mixtures of experts, output losses and parametrizations."""

from kleiber.types import lazy_exports

EXPORTS = {
    "FullAttention": "attention",
    "WindowAttention": "attention",
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
__getattr__ = lazy_exports(__name__, EXPORTS)
