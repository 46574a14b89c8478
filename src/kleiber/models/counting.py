"""Numbers of parameters and FLOPs per token of a model, counted from its modules; nothing is measured.

A `Layer` with a cost beyond that of its `nn.Linear` children returns that cost from `flops`. The FLOPs of Hugging Face
models are approximate, from their config. Elementwise operations, norms and the embedding lookup count as 0, as in the
literature.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from kleiber.models.block import Block
from kleiber.types.model import LOW_RANK, Attention, Head, Layer, Model

A, B, _ = LOW_RANK


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; a tied matrix counts once.

    total          all of them: N of Hoffmann et al. 2022 (arXiv:2203.15556)
    active         total minus the experts that a token does not visit
    non_embedding  total minus the embedding: N of Kaplan et al. 2020 (arXiv:2001.08361)
    embedding      lookup table and output layer of the vocabulary, and learned positions
    trainable      those that require a gradient
    """

    total: int
    active: int
    non_embedding: int
    embedding: int
    trainable: int


def count_parameters(model: Model) -> Parameters:
    """Numbers of parameters of a model."""
    sizes = {id(p): p.numel() for p in model.parameters()}
    total = sum(sizes.values())
    vocabulary = sum({id(matrix): matrix.numel() for matrix in model.vocabulary()}.values())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Parameters(total, total - model.idle(), total - vocabulary, vocabulary, trainable)


def training_flops(model: Model, time: int, read: Collection[str] = ()) -> float:
    """FLOPs per token of a forward and a backward pass over rows of `time` tokens.

    read  names of the task heads that the objective reads in place of the head over tokens; output layers that it does
          not read cost nothing

    Forward: 2 FLOPs per weight of a matrix (of k experts, the router and the head too), and 4 per channel and (query,
    key) pair that the mask allows, which is half of the square for a causal mask. Backward: as many for the gradient of
    each trainable matrix, and as many for the gradient of a matrix's input where an earlier layer is trained. That
    makes three times the forward pass where everything is trained, and less with frozen weights or LoRA. Recomputation
    and the optimizer are not counted. (Hoffmann et al. 2022, appendix F, count the whole square, and the lookup as a
    product.)
    """
    return sum(_passes(model, time, read))


def forward_flops(model: Model, time: int, read: Collection[str] = ()) -> float:
    """FLOPs per token of a forward pass alone, with the arguments of `training_flops`."""
    return _passes(model, time, read)[0]


def _passes(model: Model, time: int, read: Collection[str], executed: bool = False) -> tuple[float, float]:
    """FLOPs per token of a forward and of a backward pass, as the model counts them or as its modules do."""
    counted = model.counted_flops(time, read)
    return counted or _cost(model, time, entered=False, idle=_unread(model, read), executed=executed)


def without_weights(model: Model, device: str = "meta") -> Model:
    """Returns a copy of a model whose parameters and buffers are on PyTorch's meta device: they need no memory.

    device  another one, for fake tensors (within FakeTensorMode)
    """
    empty: dict[int, torch.Tensor] = {}  # by the id of the tensor of the model, as deepcopy looks copies up
    for parameter in model.parameters():
        shape = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        empty[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    for buffer in model.buffers():
        empty[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return copy.deepcopy(model, empty)


def _unread(model: Model, read: Collection[str]) -> frozenset[int]:
    """Returns the ids of the output layers that the objective does not read.

    read  names of the task heads that it reads; with any, it does not read the output layer for tokens
    """
    heads = {id(head) for name, head in model.heads.items() if name not in read}
    return frozenset(heads | {id(model.head)} if read else heads)


def executed_flops(model: Model, time: int, recomputed: bool = False, read: Collection[str] = ()) -> float:
    """FLOPs per token that the device executes in training: `training_flops` plus masked pairs and recomputation.

    recomputed  blocks are computed again in the backward pass (trainer.checkpoint_activations)

    Rows are assumed to hold one document without padding, and experts to drop no token. Packed documents and padding
    need a mask, with which the device computes all pairs. Tokens that exceed an expert's capacity are not computed.
    """
    forward, backward = _passes(model, time, read, executed=True)
    total = forward + backward
    if model.counted_flops(time, read) is not None:
        return total + recomputed * forward
    entered = _below(model.embedding, entered=False)
    for block in model.blocks if recomputed else ():
        entered = _below(block, entered)
        total += _again(block, time) if entered else 0.0
    return total


def _again(block: nn.Module, time: int) -> float:
    """FLOPs of recomputing a block: its forward pass up to the last product, whose result no gradient needs."""
    last = block.mlp.last_matrix() if isinstance(block, Block) else None
    forward, _ = _cost(block, time, entered=True, executed=True)
    return forward - (0.0 if last is None else 2.0 * last.weight.numel())


def _cost(
    module: nn.Module, time: int, entered: bool, idle: Collection[int] = (), executed: bool = False
) -> tuple[float, float]:
    """Forward and backward FLOPs of a module without its `idle` parts.

    Children are assumed to run in the order of registration, except that those of a mixture have the same input, that
    the matrix `out` of an attention comes last, and that nothing reads the logits.

    entered   whether the module's input needs a gradient
    idle      ids of output layers that are not read
    executed  whether products that the device computes and masks count too
    """
    parameters = dict(module.named_parameters(recurse=False))
    matrices = {name: p for name, p in parameters.items() if p.dim() > 1 and not name.endswith(LOW_RANK)}
    if isinstance(module, nn.Linear):
        forward, backward = _matrices([(p.numel(), p.requires_grad) for p in matrices.values()], 1.0, entered)
        low = [
            (parameters[name].numel(), parameters[name].requires_grad)
            for name in ("weight" + A, "weight" + B)
            if name in parameters
        ]
        update = _matrices(low, 1.0, entered)
        return forward + update[0], backward + update[1]
    count = (module.executed_flops if executed else module.flops) if isinstance(module, Layer) else None
    flops = 0.0 if count is None else count(time)
    if flops and matrices:
        # A low-rank update that is added to the matrix itself needs the gradient of the whole matrix.
        trained = {n: any(parameters[n + s].requires_grad for s in ("", A, B) if n + s in parameters) for n in matrices}
        sizes = [(p.numel(), trained[name]) for name, p in matrices.items()]
        return _matrices(sizes, flops / (2.0 * sum(size for size, _ in sizes)), entered)
    out = module.out if isinstance(module, Attention) else None
    children = [child for child in module.children() if child is not out and id(child) not in idle]
    forward = backward = 0.0
    reached = entered
    for child in children:
        cost = _cost(child, time, entered if isinstance(module, Layer) and module.routes else reached, idle, executed)
        forward, backward = forward + cost[0], backward + cost[1]
        reached = reached if isinstance(child, Head) else _below(child, reached)
    gradients = module.executed_backward_flops(time) if executed and isinstance(module, Layer) else 2 * flops
    forward, backward = forward + flops, backward + gradients * reached
    if out is not None:
        cost = _cost(out, time, reached, executed=executed)
        forward, backward = forward + cost[0], backward + cost[1]
    return forward, backward


def _matrices(sizes: list[tuple[int, bool]], share: float, entered: bool) -> tuple[float, float]:
    """Forward and backward FLOPs per token of consecutive matrix products.

    sizes    (number of weights, whether they are trained) of each matrix
    share    share of the weights that a token visits, below 1 for experts
    entered  whether the input of the first matrix needs a gradient
    """
    forward = backward = 0.0
    for size, trained in sizes:
        forward += 2.0 * share * size
        backward += 2.0 * share * size * (trained + entered)
        entered = entered or trained
    return forward, backward


def _below(module: nn.Module, entered: bool) -> bool:
    """Whether the output of a module needs a gradient: its input does (`entered`), or it has a trainable parameter."""
    return entered or any(p.requires_grad for p in module.parameters())


def six_nd(parameters: Parameters) -> float:
    """6 N FLOPs per token, N the active parameters: the approximation of Kaplan et al. 2020, section 2.1."""
    return 6.0 * parameters.active
