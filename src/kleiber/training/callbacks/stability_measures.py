"""What the callback `stability` measures in a model: attention, activations, logits, gradients and updates by layer.

Attention, activations and the log-normalizer need a forward pass of their own, which changes neither weights, gradients
nor random numbers. All measures are sums and maxima that are added up over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kleiber.evals.streams import hooked
from kleiber.models.transformer import Block
from kleiber.nn.attention import FullAttention
from kleiber.nn.precision import without_autocast
from kleiber.nn.sharding import is_sharded, local
from kleiber.types.batch import Batch
from kleiber.types.model import Model, evaluation_mode
from kleiber.types.ranks import all_reduce_together, world_size

QUERIES = 256  # most positions of a row at which attention and logits are measured
ENTRIES = 65_536  # most entries of a weight matrix of which the update is measured
SQUARES = ("activation/", "update/")  # of which the root is taken after ranks have been added up


@dataclass
class Measures:
    """Sums and numbers of what they are the sum of, by name, and maxima by name; see `values`."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add_mean(self, name: str, total: Tensor, count: Tensor) -> None:
        self.sums[name], self.counts[name] = total.double(), count.double().expand_as(total)

    def reduce(self) -> Measures:
        """Adds up sums and counts over all ranks, and takes the largest maxima. Every rank must have the same names."""
        operations = dist.ReduceOp.SUM, dist.ReduceOp.SUM, dist.ReduceOp.MAX
        for parts, operation in zip((self.sums, self.counts, self.maxima), operations, strict=True):
            parts.update(zip(parts, all_reduce_together(list(parts.values()), operation), strict=True))
        return self

    def values(self) -> dict[str, list[float]]:
        """Means and maxima by name, each a list with an entry for each head where the layer has heads."""
        means = {name: total / self.counts[name].clamp(min=1e-300) for name, total in self.sums.items()}
        lists = {name: value.reshape(-1).tolist() for name, value in {**self.maxima, **means}.items()}
        return {name: [v**0.5 for v in each] if name.startswith(SQUARES) else each for name, each in lists.items()}


@torch.compiler.set_stance("force_eager")  # only training is compiled
@torch.no_grad()
def look_inside(model: Model, batch: Batch, reads_head: bool = True) -> Measures:
    """Measures of a forward pass over `batch`, without padding, on this rank. Layers and heads count from 0.

    attention_logit/<layer>    largest |logit| of each head, as it enters the softmax
    attention_entropy/<layer>  entropy of each head's weights over the log of the number of keys, mean over queries
    activation/<layer>         RMS of the residual stream after the block
    log_z                      mean log-normalizer of the next-token (or masked-token) logits

    A model that is not made of our blocks has only log_z. Of longer rows, QUERIES evenly spaced positions are measured.

    reads_head  whether the objective uses the output layer over tokens; without it there is no log_z
    """
    measures, device = Measures(), batch.tokens.device
    time = batch.tokens.shape[1]
    real = batch.is_real
    at = torch.linspace(0, time - 1, min(time, QUERIES), device=device).long()
    hooks = []
    for layer, block in enumerate(block for block in model.modules() if isinstance(block, Block)):
        if isinstance(block.attention, FullAttention):

            def read(module: nn.Module, arguments: tuple[Tensor | None, ...], layer: int = layer) -> None:
                assert isinstance(module, FullAttention) and arguments[0] is not None
                add_attention(measures, layer, module, arguments[0], arguments[1], at, real)

            hooks.append(block.attention.register_forward_pre_hook(read))

        def measure(module: nn.Module, _: object, output: tuple[Tensor, object], layer: int = layer) -> None:
            squares = output[0].double().square().mean(-1)
            measures.add_mean(f"activation/{layer}", (squares * real).sum(), real.sum())

        hooks.append(block.register_forward_hook(measure))
    devices = [device] if device.type == "cuda" else []
    with hooked(hooks), evaluation_mode(model), torch.random.fork_rng(devices=devices):
        hidden = model(batch).hidden
        if reads_head:
            log_z = model.head(hidden[:, at]).double().logsumexp(-1)
            measures.add_mean("log_z", (log_z * real[:, at]).sum(), real[:, at].sum())
    return measures


def add_attention(
    measures: Measures,
    layer: int,
    attention: FullAttention,
    x: Tensor,
    mask: Tensor | None,
    at: Tensor,
    real: Tensor,
) -> None:
    """Adds the largest logit and the entropy of each head, over the queries `at` that are not padding."""
    logits, allowed = attention_logits(attention, x, mask, at)
    queries = real[:, None, at]
    largest = logits.masked_fill(~(allowed & queries[..., None]), 0).abs().amax((0, 2, 3))
    measures.maxima[f"attention_logit/{layer}"] = largest.double()
    log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
    entropy = -(log_p.exp() * log_p.masked_fill(~allowed, 0)).sum(-1)
    keys = allowed.sum(-1)
    counted = (queries & (keys > 1)).expand(entropy.shape)  # a query with one key has no choice
    share = (entropy / keys.clamp(min=2).log()).masked_fill(~counted, 0)
    measures.add_mean(f"attention_entropy/{layer}", share.double().sum((0, 2)), counted.sum((0, 2)))


def attention_logits(
    attention: FullAttention, x: Tensor, mask: Tensor | None, at: Tensor
) -> tuple[Float[Tensor, "batch heads queries keys"], Bool[Tensor, "#batch 1 queries keys"]]:
    """The logits of the queries at the positions `at`, as they enter the softmax, and which keys each may read.

    x, mask  arguments of the layer's forward pass
    """
    q, k, _ = attention.project(x)
    dtype, positions = torch.promote_types(q.dtype, torch.float32), torch.arange(x.shape[1], device=x.device)
    with without_autocast(x.device):
        logits = attention.logits(q[:, :, at].to(dtype), k.to(dtype), at)
    if mask is not None:
        return logits, mask[:, :, at]
    readable = at[:, None] >= positions if attention.causal else torch.ones_like(at[:, None] >= positions)
    return logits, readable[None, None]


def rows_of(batch: Batch, rows: int, longest: int) -> Batch:
    """The first `rows` rows of a batch, cut to `longest` tokens, without targets."""

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:rows, :longest]

    samples = None if batch.samples is None else batch.samples[:rows]
    return Batch(batch.tokens[:rows, :longest], cut(batch.real), segments=cut(batch.segments), samples=samples)


def layers_of(model: Model) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by the part of the model that they belong to: "layer <i>", "embedding" or "output"."""
    try:
        blocks = list(model.blocks)
    except ValueError:  # a foreign model without a list of layers
        blocks = []
    parts = {id(p): f"layer {i}" for i, block in enumerate(blocks) for p in block.parameters()}
    parts[id(model.embedding.weight)] = "embedding"
    groups: dict[str, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(parts.get(id(parameter), "output"), []).append(parameter)
    return groups


@torch.no_grad()
def gradient_norms(layers: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """The norm of the gradients of each part of the model; inf where it is not finite."""
    pairs = [(name, p.grad) for name, parameters in layers.items() for p in parameters if p.grad is not None]
    if not pairs:
        return {}
    squares = torch.stack(torch._foreach_norm([local(gradient) for _, gradient in pairs])).double().square()
    sharded = [is_sharded(gradient) for _, gradient in pairs]
    if any(sharded):  # what every rank has whole counts once
        squares /= torch.tensor([1 if each else world_size() for each in sharded], device=squares.device)
        dist.all_reduce(squares)
    norms: dict[str, float] = {}
    for (name, _), square in zip(pairs, squares.tolist(), strict=True):
        norms[name] = norms.get(name, 0.0) + (square if square == square else float("inf"))
    return {name: square**0.5 for name, square in norms.items()}


def matrices_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained matrices of a model, and stacks of matrices, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2}


def sample_entries(matrices: Iterable[nn.Parameter]) -> list[Tensor]:
    """Copies of at most ENTRIES evenly spaced entries of each matrix."""
    return [_spaced(local(matrix.detach())).clone() for matrix in matrices]


@torch.no_grad()
def add_updates(measures: Measures, before: Sequence[Tensor], matrices: dict[str, nn.Parameter]) -> None:
    """Adds update/<matrix>, the relative change |dW| / |W| since `sample_entries`.

    A matrix that was 0 before has none.
    """
    after = [_spaced(local(matrix.detach())) for matrix in matrices.values()]
    changes = torch._foreach_norm(torch._foreach_sub(after, list(before)))
    for name, change, norm in zip(matrices, changes, torch._foreach_norm(list(before)), strict=True):
        measures.add_mean(f"update/{name}", change.double().square() * (norm > 0), norm.double().square())


def _spaced(values: Tensor) -> Tensor:
    stride = -(-values.numel() // ENTRIES)
    return values.flatten()[:: stride | 1 if stride > 1 else 1]
