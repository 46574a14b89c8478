"""One optimizer step over micro-batches, as functions of model, objective and batches.

Losses are sums over target tokens. Their gradients are accumulated, summed over ranks, and divided once by the number
of target tokens in the global batch, so every split into micro-batches and ranks gives the same step.
Where a model draws random numbers (dropout, `model/router=noisy`), another split draws other ones. The balance loss of
`model.mlp.balance.scope=global` is taken over each micro-batch, so it differs between splits into micro-batches.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from kleiber.config.errors import RankLost, RankTimeout
from kleiber.nn.sharding import full_tensor, split_sharded
from kleiber.types import Json
from kleiber.types.batch import Batch, Loss, Penalty, Sums
from kleiber.types.contracts import Objective
from kleiber.types.model import Model
from kleiber.types.ranks import all_reduce_together, world_size
from kleiber.types.retention import Retention

# In the errors of gloo, NCCL and the store at which ranks meet.
TIMED_OUT = re.compile("timed? ?out", re.IGNORECASE)
DISCONNECTED = re.compile(
    "connection (closed|reset|refused|was)|broken pipe|gloo/transport|NCCL communicator was aborted|remote process|"
    "DistNetworkError|failed to (recv|send)",
    re.IGNORECASE,
)


class Diverged(RuntimeError):
    """Raised when the loss or the gradient of a step is not finite, or too many consecutive steps are spikes.

    The step that raises it does not change the weights. Also raised where a validation loss is not finite.
    """


class Rollback(RuntimeError):
    """Raised by a step before it changes the weights, where the stage is to go back to its latest planned checkpoint.

    Training then leaves out the data between that checkpoint and this step, this step included.

    step     number of the step, from 1
    reason   text of the alarm
    earlier  rollbacks of the stage before this one
    target   step of the checkpoint to go back to, 0 for the beginning; None until the callback that saves them sets it
    """

    def __init__(self, step: int, reason: str, earlier: Sequence[Json]) -> None:
        super().__init__(f"step {step:,}: {reason}")
        self.step, self.reason, self.earlier = step, reason, earlier
        self.target: int | None = None


def micro_batches(batch: Batch, rows: int) -> list[Batch]:
    """Micro-batches of at most `rows` samples; the batch itself where one is enough.

    Padded rows are sorted by length, and each micro-batch is as wide as its longest row, so that padding costs little.
    """
    if len(batch) <= rows or batch.real is None or batch.segments is not None or batch.counterpart is not None:
        return batch.split(rows)
    # The last real column of each row: padding elsewhere than at the end stays.
    column = torch.arange(1, batch.real.shape[1] + 1, device=batch.real.device)
    lengths = (batch.real * column).amax(1)
    order = lengths.argsort(descending=True, stable=True)
    parts = batch.map(lambda tensor: tensor[order]).split(rows)
    return [narrow(part, width) for part, width in zip(parts, lengths[order][::rows].tolist(), strict=True)]


def narrow(batch: Batch, width: int) -> Batch:
    """Returns the batch cut to its first `width` columns."""
    assert batch.real is not None
    weights = None if batch.weights is None else batch.weights[:, :width]
    return dataclasses.replace(batch, tokens=batch.tokens[:, :width], real=batch.real[:, :width], weights=weights)


@contextmanager
def rank_errors() -> Iterator[None]:
    """Raises RankTimeout or RankLost where a collective operation within the context fails because of another rank.

    The errors of gloo and NCCL name sockets and lines of C++, not what happened.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        if TIMED_OUT.search(str(error)):
            raise RankTimeout(
                "another rank did not answer within trainer.rank_timeout: it is stopped or hangs, or it does something "
                "that takes longer"
            ) from error
        if DISCONNECTED.search(str(error)):
            raise RankLost("the connection to another rank broke: it has ended, or the network failed") from error
        raise


def seed_generators(seed: int) -> None:
    """Seeds PyTorch's generators as `torch.manual_seed` does, but only those of devices in use.

    For devices that are not in use, `torch.manual_seed` formats the call stack, which takes .3 ms at every step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def accumulate(
    model: Model,
    objective: Objective,
    batches: Sequence[Batch],
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    retention: Sequence[Retention] = (),
    step: int = 0,
) -> Sums:
    """Forward and backward passes over micro-batches, with gradients synchronized in the last one; this rank's sums.

    retention  methods whose penalties are added
    step       number of the optimizer step, from 0
    """
    sums = Sums()
    batches = share_auxiliary_ratio(model, objective, batches)
    targets, counts = step_counts(model, objective, batches, retention, step)
    for number, batch in enumerate(batches, start=1):
        with nullcontext() if number == len(batches) else no_sync():
            loss = objective(model, batch)
            for method, method_counts in counts:
                loss = add_penalty(loss, method.penalty(model, batch, step, method_counts), targets)
            backward(loss.total)
        sums.add(loss)
    return sums


def step_counts(
    model: Model, objective: Objective, batches: Sequence[Batch], retention: Sequence[Retention], step: int
) -> tuple[Tensor, list[tuple[Retention, Tensor]]]:
    """Number of targets of a step, and the methods with a penalty and their counts, over all micro-batches and ranks.

    Without a penalty, the number of targets is not counted, and is 0.
    """
    counts = [[method.penalty_counts(model, batch, step) for batch in batches] for method in retention]
    device = batches[0].tokens.device
    rows = [(method, of_method) for method, of_method in zip(retention, counts, strict=True) if of_method[0]]
    if not rows:
        return torch.zeros((), device=device), []
    columns = [[objective.targets(model, batch) for batch in batches]]
    for _, of_method in rows:
        columns += [list(column) for column in zip(*of_method, strict=True)]
    numbers = [on_device(number, device) for column in columns for number in column]
    totals = torch.stack(numbers).view(len(columns), -1).sum(1)
    (totals,) = all_reduce_together([totals])
    targets, *parts = totals.float().split([1, *(len(of_method[0]) for _, of_method in rows)])
    return targets[0], [(method, part) for (method, _), part in zip(rows, parts, strict=True)]


def on_device(number: Tensor | float, device: torch.device) -> Tensor:
    """A number in fp64 on a device. One of the host is no copy that the device would have to wait for."""
    if isinstance(number, Tensor):
        return number.to(device, torch.float64)
    return torch.full((), number, dtype=torch.float64, device=device)


def share_auxiliary_ratio(model: Model, objective: Objective, batches: Sequence[Batch]) -> Sequence[Batch]:
    """The micro-batches with the factor of auxiliary losses of the whole step, over all micro-batches and ranks.

    Their own factors differ where rows differ in the share of targets, and the step would depend on the split.
    """
    if (len(batches) == 1 and world_size() == 1) or not model.routes:
        return batches
    counts = [objective.auxiliary_counts(model, batch) for batch in batches]
    numbers = [on_device(number, batches[0].tokens.device) for pair in counts if pair for number in pair]
    if not numbers:
        return batches
    totals = torch.stack(numbers).view(-1, 2).sum(0)
    (totals,) = all_reduce_together([totals])
    ratio = totals[0] / totals[1]
    return [dataclasses.replace(batch, auxiliary_ratio=ratio.expand(len(batch))) for batch in batches]


def add_penalty(loss: Loss, penalty: Penalty, targets: Tensor) -> Loss:
    """The loss of a micro-batch plus its part of a penalty; the penalty's metrics get the prefix "retention/".

    targets  of the whole step, by which the sum of the losses is divided
    """
    metrics = {f"retention/{name}": value * targets for name, value in penalty.metrics.items()}
    return Loss(loss.total + targets * penalty.value, loss.tokens, {**loss.metrics, **metrics})


def normalize_gradients(
    parameters: Sequence[nn.Parameter],
    tokens: float,
    world_size: int,
    clip: float | None,
    change: Callable[[], None] | None = None,
    norms: Sequence[float] | None = None,
) -> float:
    """Divides the gradients by the token count, clips their global norm, and returns the norm before clipping.

    Raises Diverged where the norm is not finite.

    world_size  number of ranks, over which DistributedDataParallel has averaged the gradients
    clip        largest global norm; None does not clip
    change      called when the gradients are those of the mean loss, before their norm is computed
    norms       values of `gradient_norms` where the caller has read them; unused with a `change`
    """
    parts = gradient_parts(parameters)
    scale = world_size / tokens
    if change is not None:
        for gradients in parts:
            torch._foreach_mul_(gradients, scale)
        change()
        scale, norms = 1.0, None
    norm = math.hypot(*(read_numbers(gradient_norms(parameters)) if norms is None else norms)) * scale
    if not math.isfinite(norm):
        raise Diverged(f"the gradient norm is {norm}")
    if clip is not None and norm > clip:
        scale *= clip / norm
    if scale != 1.0:
        for gradients in parts:
            torch._foreach_mul_(gradients, scale)
    return norm


def gradient_parts(parameters: Sequence[nn.Parameter]) -> list[list[Tensor]]:
    """The gradients of the parameters, in lists of sharded and of other ones."""
    return split_sharded(p.grad for p in parameters if p.grad is not None)


def gradient_norms(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The norm of each of `gradient_parts`, which a device may have yet to compute."""
    return [full_tensor(torch.nn.utils.get_total_norm(gradients)) for gradients in gradient_parts(parameters)]


def read_numbers(tensors: Sequence[Tensor]) -> list[float]:
    """The values of tensors with one element each, for all of which the host waits once."""
    return torch.stack([tensor.detach().double() for tensor in tensors]).cpu().tolist() if tensors else []
