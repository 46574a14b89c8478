"""Top-k routing whose weights have a temperature."""

from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.topk import TokenChoice, refuse_single_expert
from kleiber.types import ChosenExperts, NumExperts, Positive


class Tempered(TokenChoice):
    """The k experts of largest logit, weighted by a softmax of logits / temperature over those k."""

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts, temperature: Positive = 2.0) -> None:
        super().__init__(site, num_experts, k)
        refuse_single_expert(k, "tempered")
        self.temperature = temperature

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        return (logits.gather(-1, chosen) / self.temperature).softmax(-1)
