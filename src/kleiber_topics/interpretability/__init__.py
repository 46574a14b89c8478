"""Interpretability: attention, attribution, patching, probes and sparse autoencoders, on causes that are known."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Trigger": "trigger",
    "Attention": "attention.attention",
    "Attribution": "attribution.evaluation",
    "Autoencoder": "autoencoder.evaluation",
    "Patching": "patching.evaluation",
    "Probes": "probes.evaluation",
    "method_agreement": "agreement",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
