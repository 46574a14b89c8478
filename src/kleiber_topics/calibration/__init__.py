"""Calibration: whether a model knows when it is wrong."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Calibration": "evaluation",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
