"""Adapters: which parameters of a loaded model a stage trains."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Freeze": "freeze",
    "DoRA": "lora",
    "LoRA": "lora",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
