"""Transfer: what pre-training is worth to tasks, which objective and which architecture to pre-train."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Baselines": "baselines",
    "ClmVsMlm": "clm_vs_mlm",
    "Pretraining": "pretraining",
    "Transfer": "transfer",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
