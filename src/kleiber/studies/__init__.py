"""Statistical studies of a table of finished runs: scaling laws and comparisons, with their uncertainty.

No module of this package imports torch.
"""

from kleiber.types import lazy_exports

EXPORTS = {
    "Ablation": "ablation",
    "Accounting": "scaling",
    "Baselines": "baselines",
    "ChainOfThought": "chain_of_thought",
    "ClmVsMlm": "clm_vs_mlm",
    "Compare": "compare.study",
    "Continual": "continual",
    "DataRepeat": "joint_laws",
    "Explain": "explain",
    "Forgetting": "forgetting",
    "ForgettingLaw": "forgetting_law",
    "Hyperparameters": "hyperparameters",
    "Instructions": "instructions",
    "IsoFLOP": "scaling",
    "MoELaw": "joint_laws",
    "MupTransfer": "mup_transfer",
    "Needle": "needle",
    "OOD": "ood",
    "Panel": "panel",
    "Retrieval": "retrieval",
    "Scaling": "scaling",
    "Search": "search",
    "Stability": "stability",
    "Transfer": "transfer",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
