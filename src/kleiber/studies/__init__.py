"""Statistical studies of a table of finished runs: scaling laws and comparisons, with their uncertainty.

No module of this package imports torch.
"""

from kleiber.types import lazy_exports

EXPORTS = {
    "Ablation": "ablation",
    "Accounting": "scaling",
    "Baselines": "baselines",
    "ClmVsMlm": "clm_vs_mlm",
    "Compare": "compare.study",
    "Continual": "continual",
    "DataRepeat": "joint_laws",
    "Forgetting": "forgetting",
    "ForgettingLaw": "forgetting_law",
    "Hyperparameters": "hyperparameters",
    "IsoFLOP": "scaling",
    "MoELaw": "joint_laws",
    "MupTransfer": "mup_transfer",
    "Panel": "panel",
    "Scaling": "scaling",
    "Search": "search",
    "Stability": "stability",
    "Transfer": "transfer",
    "loss_lines": "ood",
    "matched_losses": "retrieval",
    "method_agreement": "explain",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
