"""Routers: where each token goes, and with what weight. They know no experts and compute no loss.

Router logits are always fp32: a rounding there flips an expert, which is not a small error.
"""

from kleiber.nn.routers.expert_choice import ExpertChoice
from kleiber.nn.routers.fixed import Hash, Random
from kleiber.nn.routers.sigmoid import GroupLimited, LossFree, Sigmoid
from kleiber.nn.routers.sinkhorn import Sinkhorn
from kleiber.nn.routers.softmax import Noisy, Switch, TopK

__all__ = [
    "ExpertChoice", "GroupLimited", "Hash", "LossFree", "Noisy", "Random", "Sigmoid", "Sinkhorn", "Switch", "TopK",
]  # fmt: skip
