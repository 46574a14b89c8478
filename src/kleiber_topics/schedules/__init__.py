"""Schedules: a law of the loss along whole curves of learning rates, and a design that trains the decay it chooses."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Schedules": "schedule",
}
LAWS = {"schedule": "law.schedule"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
