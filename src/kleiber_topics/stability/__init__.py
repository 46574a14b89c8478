"""Stability: at which learning rates training diverges."""

from kleiber.types import lazy_exports

EXPORTS = {
    "rate_sensitivity": "sensitivity",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
