"""Routers: where each token goes, and with what weight. They know no experts and compute no loss.

Router logits are always fp32: a rounding there flips an expert, which is not a small error.
"""

from kleiber.types.exports import lazy_exports

EXPORTS = {
    "TopK": "topk",
    "Switch": "topk",
    "Noisy": "topk",
    "Sigmoid": "sigmoid",
    "LossFree": "sigmoid",
    "GroupLimited": "sigmoid",
    "Sinkhorn": "sinkhorn",
    "Hash": "fixed",
    "Random": "fixed",
    "ExpertChoice": "expert_choice",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
