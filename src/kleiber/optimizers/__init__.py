"""Optimizers, their parameter groups, and learning-rate schedules."""

from kleiber.types import lazy_exports

EXPORTS = {
    "AdamW": "adamw",
    "Constant": "schedules",
    "Cosine": "schedules",
    "DPSGD": "privacy",
    "WSD": "schedules",
    "Lion": "adamw",
    "Muon": "muon",
    "SGD": "sgd",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
