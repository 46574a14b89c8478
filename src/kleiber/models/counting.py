"""How large a model is and what a token costs, by walking its modules. It measures nothing and times nothing.

A module whose cost is not that of its `nn.Linear` parts says so itself: `flops(time)`, forward FLOPs per token. A model
of Hugging Face's is counted by its config, approximately.
Elementwise work, norms and the lookup count as 0, as everywhere in the literature.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from kleiber.models.hf_model import HFModel
from kleiber.nn.moe import Experts


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; a tied matrix counts once.

    total          all of them: N of Hoffmann et al. 2022 (arXiv:2203.15556)
    active         total less the experts that a token does not visit
    non_embedding  total less the vocabulary matrices: N of Kaplan et al. 2020 (arXiv:2001.08361)
    embedding      the vocabulary matrices: lookup table and output layer
    trainable      those that require a gradient
    """

    total: int
    active: int
    non_embedding: int
    embedding: int
    trainable: int


def count_parameters(model: nn.Module) -> Parameters:
    """Parameters of a model with `embedding.weight` and `head.weight`."""
    sizes = {id(p): p.numel() for p in model.parameters()}
    total = sum(sizes.values())
    if isinstance(model, HFModel):
        idle, matrices = model.idle(), model.vocabulary()
    else:
        idle = sum(_idle(module) for module in model.modules() if isinstance(module, Experts))
        matrices = [getattr(model, name).weight for name in ("embedding", "head")]
    vocabulary = sum({id(matrix): matrix.numel() for matrix in matrices}.values())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(total, total - idle, total - vocabulary, vocabulary, trainable)


def _idle(experts: Experts) -> int:
    """Parameters of the experts that one token leaves out: (num_experts - k) of them."""
    return sum((len(stack) - experts.k) * stack[0].numel() for stack in (experts.gate_up, experts.down))


def training_flops(model: nn.Module, time: int) -> float:
    """FLOPs per token of a forward and a backward pass over rows of `time` tokens: three times the forward pass.

    Matrices 2 per weight, experts k of them, router and head included; attention 4 channels per (query, key) pair that
    the mask allows, so half of a causal square. Without recomputation or optimizer (Hoffmann et al. 2022, appendix F,
    counts the whole causal square and the lookup as a product).
    """
    if isinstance(model, HFModel):
        return 3 * model.forward_flops(time)
    return 3 * sum(_forward(module, time) for module in model.modules())


def _forward(module: nn.Module, time: int) -> float:
    if isinstance(module, nn.Linear):
        return 2.0 * module.weight.numel()
    own = getattr(module, "flops", None)
    return 0.0 if own is None else float(own(time))


def six_nd(parameters: Parameters) -> float:
    """6 N FLOPs per token, N the active parameters: the approximation of Kaplan et al. 2020, section 2.1."""
    return 6.0 * parameters.active
