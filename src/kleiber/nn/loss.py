"""Cross-entropy, log-probabilities and divergences of an output layer, computed a chunk of rows at a time.

The logits of all rows never exist at once. A `Head` is a matrix, a multiplier and a soft-cap, so that the product, the
softmax and the gradients of a chunk are computed while its logits are in the processor's cache. Second derivatives are
not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from kleiber.nn.precision import autocast_dtype, without_autocast
from kleiber.types.batch import Batch
from kleiber.types.model import Head

CPU_ROWS, LOGIT_BYTES = 256, 2**30  # of a chunk; the logits are in fp32
PLANNED: ContextVar[str | None] = ContextVar("PLANNED", default=None)  # cpu or gpu, in place of the weight's device


class CrossEntropy(NamedTuple):
    """Sums over rows in nats.

    total  cross-entropy plus z-loss, to be differentiated
    ce     the cross-entropy alone, detached
    """

    total: Tensor
    ce: Tensor


def cross_entropy(
    hidden: Float[Tensor, "*axes dim"],
    head: Head,
    targets: Int[Tensor, "*axes"],
    weights: Float[Tensor, "*axes"] | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> CrossEntropy:
    """sum_t w_t (-log p(target_t) + z_loss log(Z_t)^2), where log Z_t is the log-normalizer of the (capped) logits.

    The forward pass also computes the gradient, chunk by chunk, unless gradients are off; the backward pass only scales
    it. Rows of weight 0 are removed before any product, which makes a GPU report the number of rows once. z-loss:
    Chowdhery et al. 2022, arXiv:2204.02311, section 5.

    chunk  rows whose logits are computed together; None: as many as suit the device (`chunk_rows`)
    """
    rows, labels, multiplier = _rows(hidden, head, targets)
    weight, scale = head.weight, None
    if weights is not None:
        kept = weights.flatten().nonzero().squeeze(1)
        if len(kept) < len(rows):
            rows, labels, weights = rows[kept], labels[kept], weights.flatten()[kept]
        scale = weights.flatten().detach().to(torch.promote_types(rows.dtype, torch.float32))
    plan = _plan(rows, weight, head, multiplier)
    return CrossEntropy(*_CrossEntropy.apply(rows, weight, labels, scale, z_loss, chunk_rows(weight, chunk), plan))


def log_probs(
    hidden: Float[Tensor, "*axes dim"], head: Head, targets: Int[Tensor, "*axes"], chunk: int | None = None
) -> Float[Tensor, "*axes"]:
    """log p(target_t) of every row, in nats. The logits are computed again in the backward pass."""
    rows, labels, multiplier = _rows(hidden, head, targets)
    weight = head.weight  # read once: an adapted head computes it at each access
    return _LogProbs.apply(rows, weight, labels, chunk_rows(weight, chunk), _plan(rows, weight, head, multiplier)).view(
        targets.shape
    )


def chunk_rows(weight: Float[Tensor, "vocab features"], chunk: int | None = None) -> int:
    """Number of rows whose logits are computed together: `chunk`, or as many as suit the device of the weight.

    On a CPU these are 256, whose logits stay in its cache. A GPU has no cache of that size; each chunk starts a dozen
    kernels there and adds to the whole gradient of the weight, so it takes the rows that have LOGIT_BYTES of logits.
    Raises ValueError for a chunk below 1.
    """
    if chunk is not None:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be >= 1")
        return chunk
    is_cpu = (PLANNED.get() or weight.device.type) == "cpu"
    return CPU_ROWS if is_cpu else max(CPU_ROWS, LOGIT_BYTES // (4 * len(weight)) // CPU_ROWS * CPU_ROWS)


def _rows(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """Rows of features, their targets, and the multiplier of the logits.

    In bf16 the rows are multiplied, which saves two passes over the logits; fp32 keeps the digits of recorded runs.
    """
    assert hidden.shape[:-1] == targets.shape, f"hidden {tuple(hidden.shape)}, targets {tuple(targets.shape)}"
    rows, multiplier = head.features(hidden), head.multiplier
    if autocast_dtype(rows.device) == torch.bfloat16:
        rows, multiplier = rows * multiplier, 1.0
    return rows.reshape(-1, rows.shape[-1]), targets.reshape(-1), multiplier


class _Chunk(NamedTuple):
    """How a chunk's logits are computed (in `dtype`, times `multiplier`, capped), and which gradients are needed."""

    multiplier: float
    soft_cap: float | None
    dtype: torch.dtype
    grad_hidden: bool
    grad_weight: bool

    def logits(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits in at least fp32, and tanh(raw / soft_cap), from which the derivative of the cap follows."""
        raw = (rows @ weight.T).to(torch.promote_types(self.dtype, torch.float32))
        if self.multiplier != 1:
            raw *= self.multiplier
        if self.soft_cap is None:
            return raw, None
        bent = raw.div_(self.soft_cap).tanh_()
        return bent * self.soft_cap, bent

    def to_raw(self, grad: Tensor, bent: Tensor | None) -> Tensor:
        """The gradient of rows @ weight.T from the gradient of the logits, in place."""
        if bent is not None:
            grad.mul_(1 - bent.square())
        if self.multiplier != 1:
            grad.mul_(self.multiplier)
        return grad.to(self.dtype)


def _plan(rows: Tensor, weight: Tensor, head: Head, multiplier: float) -> _Chunk:
    dtype = autocast_dtype(rows.device) or torch.promote_types(rows.dtype, weight.dtype)
    on = torch.is_grad_enabled()
    return _Chunk(multiplier, head.soft_cap, dtype, on and rows.requires_grad, on and weight.requires_grad)


class _Gradients:
    """Accumulates the gradients of the rows and of the weight over chunks, in the precision of each."""

    def __init__(self, rows: Tensor, weight: Tensor, plan: _Chunk) -> None:
        self.rows = torch.empty_like(rows) if plan.grad_hidden else None
        self.weight = torch.zeros_like(weight) if plan.grad_weight else None

    def add(self, at: slice, raw: Tensor, rows: Tensor, weight: Tensor) -> None:
        """Adds those of one chunk: `raw` is the gradient of rows @ weight.T, `at` the positions of the rows."""
        if self.rows is not None:
            if self.rows.dtype == raw.dtype:
                torch.mm(raw, weight, out=self.rows[at])
            else:
                self.rows[at] = raw @ weight
        if self.weight is not None:
            if self.weight.dtype == raw.dtype:
                self.weight.addmm_(raw.T, rows)
            else:
                self.weight += raw.T @ rows


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor | None,
        z_loss: float,
        chunk: int,
        plan: _Chunk,
    ) -> tuple[Tensor, Tensor]:
        """The sums `total` and `ce`; computes and keeps the gradients of `total`, where the plan asks for them."""
        total = rows.new_zeros((), dtype=torch.promote_types(rows.dtype, torch.float32))
        ce = torch.zeros_like(total)
        with without_autocast(rows.device):
            grads, matrix = _Gradients(rows, weight, plan), weight.to(plan.dtype)
            for start in range(0, len(rows), chunk):
                at = slice(start, start + chunk)
                part, w = rows[at].to(plan.dtype), None if scale is None else scale[at, None]
                logits, bent = plan.logits(part, matrix)
                norm = logits.logsumexp(-1, keepdim=True)
                nll, squares = norm - logits.gather(1, targets[at, None]), norm.square()
                ce += (nll if w is None else nll * w).sum()
                if z_loss:
                    total += z_loss * (squares if w is None else squares * w).sum()
                if plan.grad_hidden or plan.grad_weight:
                    grads.add(at, plan.to_raw(_nll_gradient(logits, norm, targets[at], w, z_loss), bent), part, matrix)
        ctx.save_for_backward(grads.rows, grads.weight)
        ctx.mark_non_differentiable(ce)
        return total + ce, ce

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return rows, weight, None, None, None, None, None


def _nll_gradient(logits: Tensor, norm: Tensor, targets: Tensor, w: Tensor | None, z_loss: float) -> Tensor:
    """d/dlogits of w (norm - logit[target] + z_loss norm^2) = w (p (1 + 2 z_loss norm) - onehot), over `logits`."""
    p = logits.sub_(norm).exp_()
    if z_loss:
        p.mul_(1 + 2 * z_loss * norm)
    p.scatter_add_(1, targets[:, None], p.new_full((len(p), 1), -1.0))
    return p if w is None else p.mul_(w)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, targets: Tensor, chunk: int, plan: _Chunk) -> Tensor:
        """log p of each target; keeps the log-normalizer of each row, from which the backward pass starts."""
        values, norms = [], []
        with without_autocast(rows.device):
            matrix = weight.to(plan.dtype)
            for part, labels in zip(rows.split(chunk), targets.split(chunk), strict=True):
                logits, _ = plan.logits(part.to(plan.dtype), matrix)
                norms.append(logits.logsumexp(-1, keepdim=True))
                values.append(logits.gather(1, labels[:, None]) - norms[-1])
        ctx.save_for_backward(rows, weight, targets, torch.cat(norms))
        ctx.chunk, ctx.plan = chunk, plan
        return torch.cat(values).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of rows and weight, from logits that are computed again."""
        rows, weight, targets, norms = ctx.saved_tensors
        plan: _Chunk = ctx.plan
        with without_autocast(rows.device):
            grads, matrix = _Gradients(rows, weight, plan), weight.to(plan.dtype)
            for start in range(0, len(rows), ctx.chunk):
                at = slice(start, start + ctx.chunk)
                part = rows[at].to(plan.dtype)
                logits, bent = plan.logits(part, matrix)
                raw = plan.to_raw(_nll_gradient(logits, norms[at], targets[at], -grad[at, None], 0.0), bent)
                grads.add(at, raw, part, matrix)
        return grads.rows, grads.weight, None, None, None


def target_weights(batch: Batch) -> Float[Tensor, "batch _"] | None:
    """The weight of each target (the tokens from the second on); None where all weigh 1.

    Padding weighs 0, and so does the first token of a segment, which would be predicted from another document.
    """
    weights = None if batch.weights is None else batch.weights[:, 1:]
    if batch.segments is not None:
        same = (batch.segments[:, 1:] == batch.segments[:, :-1]).to(torch.float32)
        weights = same if weights is None else weights * same
    if batch.real is not None:
        real = batch.real[:, 1:].to(torch.float32)
        weights = real if weights is None else weights * real
    return weights


LogitsOf = Callable[[Tensor], Tensor]  # of hidden states (rows, dim)


def kl_divergence(
    old_hidden: Float[Tensor, "*axes old"],
    old_head: LogitsOf,
    hidden: Float[Tensor, "*axes dim"],
    head: LogitsOf,
    weights: Float[Tensor, "*axes"],
    temperature: float = 1.0,
    chunk: int = 256,
) -> Float[Tensor, ""]:
    """sum_t w_t T^2 KL(softmax(old_t / T) || softmax(new_t / T)) in nats, exactly 0 for equal logits.

    Only the new distribution gets a gradient. The factor T^2 keeps the gradient's size independent of T (Hinton et al.
    2015, arXiv:1503.02531, section 2). Rows of weight 0 are removed before any product. The backward pass computes each
    chunk again, so that only the logits of one chunk are in memory at a time.
    """
    kept = weights.flatten().nonzero().squeeze(1)
    old, new, scale = old_hidden.flatten(0, -2)[kept].detach(), hidden.flatten(0, -2)[kept], weights.flatten()[kept]

    def part(old_rows: Tensor, new_rows: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            before = (old_head(old_rows).float() / temperature).log_softmax(-1)
        after = (head(new_rows).float() / temperature).log_softmax(-1)
        return (w * (before.exp() * (before - after)).sum(-1)).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for pieces in zip(old.split(chunk), new.split(chunk), scale.split(chunk), strict=True):
        total = total + (checkpoint(part, *pieces, use_reentrant=False) if torch.is_grad_enabled() else part(*pieces))
    return total * temperature**2
