"""Memorization: which training text a model gives away, by planted secrets and by membership."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Canaries": "canaries",
    "Memorization": "memorization",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
