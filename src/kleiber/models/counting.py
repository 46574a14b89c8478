"""How large a model is and what a token costs, by walking its modules. It measures nothing and times nothing.

A module whose cost is not that of its `nn.Linear` parts says so itself: `flops(time)`, forward FLOPs per token. A model
of Hugging Face's is counted by its config, approximately.
Elementwise work, norms and the lookup count as 0, as everywhere in the literature.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from kleiber.models.hf.wrapped import HFModel
from kleiber.nn.lora import A, B, M
from kleiber.nn.moe import Experts, MoE


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


def training_flops(model: nn.Module, time: int, read: Collection[str] = ()) -> float:
    """FLOPs per token of a forward and a backward pass over rows of `time` tokens.

    `read` names the heads of tasks that the objective reads, where it does so in place of the head of tokens; output
    layers that it leaves alone cost nothing.

    Forward: matrices 2 per weight, experts k of them, router and head included; attention 4 channels per (query, key)
    pair that the mask allows, so half of a causal square. Backward: as much for the gradient of each trainable matrix,
    and as much for the gradient of what enters a matrix, where something trainable stands below it: so three times
    the forward pass when all is trained, and less with frozen weights or LoRA. Without recomputation or optimizer
    (Hoffmann et al. 2022, appendix F, counts the whole causal square and the lookup as a product).
    """
    if isinstance(model, HFModel):
        return 3 * model.forward_flops(time, read)
    forward, backward = _cost(model, time, entered=False, idle=_unread(model, read))
    return forward + backward


def _unread(model: nn.Module, read: Collection[str]) -> frozenset[int]:
    """Ids of the output layers that are not asked."""
    heads = {id(head) for name, head in model.heads.items() if name not in read}  # type: ignore[union-attr, operator]
    return frozenset(heads | {id(model.head)} if read else heads)


def executed_flops(model: nn.Module, time: int, recomputed: bool = False, read: Collection[str] = ()) -> float:
    """FLOPs per token that the device does for `training_flops`: with what masks leave out, padding and recomputation.

    A module that does more than its `flops` says how much in `executed_flops(time)`, of its forward pass. `recomputed`:
    blocks are computed again in the backward pass (trainer.checkpoint_activations).
    """
    if isinstance(model, HFModel):
        return training_flops(model, time, read) + recomputed * model.forward_flops(time, read)
    extra = 0.0
    for module in model.modules():
        own = getattr(module, "executed_flops", None)
        if own is not None:
            trained = _below(module, entered=True)
            extra += (3.0 if trained else 1.0) * (float(own(time)) - float(module.flops(time)))  # type: ignore[operator]
    again = sum(map(partial(_again, time=time), model.blocks)) if recomputed else 0.0  # type: ignore[arg-type]
    return training_flops(model, time, read) + extra + again


def _again(block: nn.Module, time: int) -> float:
    """A block's forward pass up to its last product, whose result the backward pass does not ask for."""
    last = getattr(block.mlp, "down", None)
    return _cost(block, time, entered=True)[0] - (2.0 * last.weight.numel() if isinstance(last, nn.Linear) else 0.0)


def _cost(module: nn.Module, time: int, entered: bool, idle: Collection[int] = ()) -> tuple[float, float]:
    """Forward and backward FLOPs of a module less its `idle` parts; `entered`: what enters it needs a gradient.

    Children are taken one after another, as they were made; those of a mixture stand side by side, and an output
    matrix `out` comes after what the module does itself.
    """
    own = dict(module.named_parameters(recurse=False))
    matrices = {name: p for name, p in own.items() if p.dim() > 1 and not name.endswith((A, B, M))}
    if isinstance(module, nn.Linear):
        forward, backward = _matrices([(p.numel(), p.requires_grad) for p in matrices.values()], 1.0, entered)
        low = [(own[name].numel(), own[name].requires_grad) for name in ("weight" + A, "weight" + B) if name in own]
        update = _matrices(low, 1.0, entered)
        return forward + update[0], backward + update[1]
    count = getattr(module, "flops", None)
    flops = 0.0 if count is None else float(count(time))
    if flops and matrices:
        # What adds a low-rank update to the matrix itself has the gradient of the whole matrix made for it.
        trained = {n: any(own[n + s].requires_grad for s in ("", A, B) if n + s in own) for n in matrices}
        sizes = [(p.numel(), trained[name]) for name, p in matrices.items()]
        return _matrices(sizes, flops / (2.0 * sum(size for size, _ in sizes)), entered)
    children = [c for c in module.children() if c is not getattr(module, "out", None) and id(c) not in idle]
    forward = backward = 0.0
    reached = entered
    for child in children:
        one, two = _cost(child, time, entered if isinstance(module, MoE) else reached, idle)
        forward, backward, reached = forward + one, backward + two, _below(child, reached)
    forward, backward = forward + flops, backward + 2 * flops * reached  # products of activations have two gradients
    if isinstance(out := getattr(module, "out", None), nn.Module):
        one, two = _cost(out, time, reached)
        forward, backward = forward + one, backward + two
    return forward, backward


def _matrices(sizes: list[tuple[int, bool]], share: float, entered: bool) -> tuple[float, float]:
    """Products one after another: of each matrix its size, and whether it is trained; a token meets `share` of it."""
    forward = backward = 0.0
    for size, trained in sizes:
        forward += 2.0 * share * size
        backward += 2.0 * share * size * (trained + entered)
        entered = entered or trained
    return forward, backward


def _below(module: nn.Module, entered: bool) -> bool:
    """Whether what leaves a module needs a gradient."""
    return entered or any(p.requires_grad for p in module.parameters())


def six_nd(parameters: Parameters) -> float:
    """6 N FLOPs per token, N the active parameters: the approximation of Kaplan et al. 2020, section 2.1."""
    return 6.0 * parameters.active
