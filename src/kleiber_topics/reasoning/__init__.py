"""Reasoning: sums whose steps are written down, or not."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Arithmetic": "arithmetic",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
