"""Recall: whether a model finds what stands far back in its context."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Recall": "recall",
    "Needle": "needle",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
