"""Retention methods: ways to keep what earlier stages learned while a stage trains on new data."""

from kleiber.types import lazy_exports

EXPORTS = {
    "AGEM": "agem",
    "EWC": "ewc",
    "L2SP": "l2sp",
    "LwF": "lwf",
    "Replay": "replay",
    "WiSE": "wise",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
