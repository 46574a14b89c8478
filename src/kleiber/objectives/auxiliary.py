"""The auxiliary losses of a model's layers, such as balance losses of experts, as part of an objective's loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kleiber.types.batch import Batch, Loss, Output


def loss_with_auxiliary(
    total: Tensor,
    tokens: Tensor | int,
    metrics: Mapping[str, Tensor],
    output: Output,
    rows: Batch,
    step_ratio: Tensor | None = None,
    marked: bool = True,
) -> Loss:
    """The loss of an objective plus the auxiliary losses of the model's layers, which every objective has to add.

    Auxiliary sums are over all tokens that the model read, and `total` is over targets. They are multiplied by
    targets / tokens: divided by the number of targets, they are means per token, so a coefficient means the same in
    pre-training and fine-tuning. Counts of assignments are not multiplied.

    total       the objective, summed over targets
    tokens      number of targets
    metrics     sums to report
    output      of the model; the "loss" in its `aux` is added to `total`, and all of `aux` to the metrics
    rows        what the model read
    step_ratio  `Batch.auxiliary_ratio`, targets / tokens of the whole step, in place of that of the micro-batch
    marked      False where every token is a target, and nothing is multiplied
    """
    auxiliary = output.aux
    if auxiliary and marked:
        ratio = tokens / real_tokens(rows)
        auxiliary = {
            name: value
            if name.startswith("load/")
            else value * (ratio if step_ratio is None else step_ratio[0].to(value.dtype))
            for name, value in auxiliary.items()
        }
    if not isinstance(tokens, Tensor):
        tokens = torch.full((), float(tokens), device=total.device)  # of which, unlike torch.tensor, no copy is awaited
    metrics = {**metrics, **{name: value.detach() for name, value in auxiliary.items()}}
    return Loss(total + auxiliary["loss"] if "loss" in auxiliary else total, tokens, metrics)


def real_tokens(batch: Batch) -> int | Tensor:
    """Number of the real tokens of a batch, at least 1."""
    return batch.tokens.numel() if batch.real is None else torch.clamp(batch.real.sum(), min=1)
