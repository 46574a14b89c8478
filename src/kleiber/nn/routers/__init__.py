"""Routers of a mixture of experts: they choose the experts of each token and the weights of their outputs."""

from kleiber.types import lazy_exports

EXPORTS = {
    "TopK": "topk",
    "Switch": "topk",
    "Noisy": "topk",
    "Sigmoid": "sigmoid",
    "LossFree": "sigmoid",
    "GroupLimited": "sigmoid",
    "Sinkhorn": "sinkhorn",
    "Hash": "hash",
    "Random": "hash",
    "ExpertChoice": "expert_choice",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
