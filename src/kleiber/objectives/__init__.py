"""Objectives: from a batch and a model to a loss, as sums over target tokens."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Classify": "classify",
    "CLM": "clm",
    "SFT": "clm",
    "Distill": "clm",
    "Equalized": "equalized",
    "DPO": "dpo",
    "KTO": "kto",
    "MLM": "mlm",
    "Reward": "reward",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
