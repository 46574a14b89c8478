"""Statistical studies of a table of finished runs: scaling laws and comparisons, with their uncertainty.

No module of this package imports torch.
"""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.studies.compare.arms import arm_name
    from kleiber.studies.compare.rows import Rows

EXPORTS = {
    "Ablation": "ablation",
    "Baselines": "baselines",
    "ClmVsMlm": "clm_vs_mlm",
    "Compare": "compare.study",
    "Continual": "continual",
    "Forgetting": "forgetting",
    "ForgettingLaw": "forgetting_law",
    "Hyperparameters": "hyperparameters",
    "MupTransfer": "mup_transfer",
    "Panel": "panel",
    "Scaling": "scaling",
    "Search": "search",
    "Transfer": "transfer",
    "expert_gains": "joint_laws",
    "loss_lines": "ood",
    "repetition_excess": "joint_laws",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
