"""Layers: attention, MLPs, mixtures of experts, loss kernels and parametrizations."""

from kleiber.types.exports import lazy_exports

EXPORTS = {
    "FullAttention": "attention",
    "NoMixing": "attention",
    "WindowAttention": "attention",
    "load_balance_loss": "balance",
    "GELU": "mlp",
    "SwiGLU": "mlp",
    "dropping_moe": "moe",
    "interleaved_moe": "moe",
    "MuP": "mup",
    "StandardParametrization": "mup",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
