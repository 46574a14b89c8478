"""How far a finished stage moved its model: in its weights, in its predictions of earlier text, and in expert loads.

The divergence needs no labels: it is the measure of forgetting of Kalajdzievski 2024 (arXiv:2401.05605, section 3) less
the entropy of the start model, which training does not change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kleiber.data.batches import evaluation_batches
from kleiber.evals.perplexity import Place, held_out_loss, score
from kleiber.evals.routing.trace import mixtures
from kleiber.nn.loss import kl_divergence
from kleiber.types.batch import Batch, Loss, Sums
from kleiber.types.contracts import Objective, Task
from kleiber.types.model import Model


@torch.no_grad()
def divergence(
    start: Model, model: Model, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> Sums:
    """Sums of KL(start || model) over the targets of `batches`, as "kl"; the caller reduces over ranks.

    Raises ValueError for an objective that predicts no distribution.
    """
    if not objective.has_predictions:
        raise ValueError(f"{type(objective).__name__} predicts no distribution whose divergence could be taken")
    training, sums = model.training, Sums()
    model.eval()
    start.eval()
    try:
        for batch in batches:
            moved = batch.to(device)
            before, after = objective.predictions(start, moved), objective.predictions(model, moved)
            total = kl_divergence(before.hidden, before.head, after.hidden, after.head, after.weights)
            sums.add(Loss(total, after.weights.sum(), {"kl": total}))
    finally:
        model.train(training)
    return sums


@torch.no_grad()
def distance(start: nn.Module, model: nn.Module) -> dict[str, float]:
    """|theta - theta_start|, and the same over |theta_start|, of the parameters that both have."""
    before, moved, size = dict(start.named_parameters()), 0.0, 0.0
    for name, parameter in model.named_parameters():
        if name in before:
            moved += (parameter - before[name]).double().square().sum().item()
            size += before[name].double().square().sum().item()
    return {"l2": moved**0.5, "relative": (moved / size) ** 0.5 if size else float("nan")}


Pass = Callable[[Iterable[Batch]], Sums]


def drift(
    start: Model, model: Model, earlier: Sequence[Task], own: Sequence[Task], tokens: int, rows: int, place: Place
) -> dict[str, float]:
    """drift/weights, |theta - theta_start| / |theta_start|, and drift/<task>/kl of the earlier tasks that are
    likelihoods of outcomes: KL(start || model) in nats per target, on the first `tokens` targets. Of a mixture of
    experts also what `shifts` says."""
    found = {"drift/weights": distance(start, model)["relative"]}
    device = next(model.parameters()).device
    for task in earlier:
        if task.objective.has_predictions:
            apart = passed(
                task,
                tokens,
                rows,
                place,
                device.type,
                lambda b, t=task: divergence(start, model, t.objective, b, device),
            )
            found[f"drift/{task.name}/kl"] = apart.means()["kl"].item()
    if mixtures(model):
        before, after = (
            {task.name: loads(one, task, tokens, rows, place) for task in (*earlier, *own)} for one in (start, model)
        )
        found |= shifts(before, after, [task.name for task in earlier], [task.name for task in own])
    return found


def untrained(model: Model, earlier: Sequence[Task], tokens: int, rows: int, place: Place) -> dict[str, float]:
    """drift/<task>/untrained: the loss of a model before any training, in nats per target, on the first `tokens`
    targets. Less the loss of the start it is what the start had learned, and forgetting is told as a share of that."""
    return {f"drift/{task.name}/untrained": score(model, task, tokens, rows, place)["loss"] for task in earlier}


def passed(task: Task, tokens: int, rows: int, place: Place, device: str, make: Pass) -> Sums:
    """What one pass over the first `tokens` targets of a task adds up to, over all ranks."""
    chosen = task.held_out.first(tokens)
    rank, world = (place.rank, place.world_size) if len(chosen) >= place.world_size else (0, 1)
    with torch.autocast(device, torch.bfloat16, enabled=place.autocast):
        sums = make(evaluation_batches(chosen, rows, None, rank, world))
    return sums.reduce() if world > 1 else sums


def loads(model: Model, task: Task, tokens: int, rows: int, place: Place) -> dict[str, Tensor]:
    """By layer, the share of the assignments that each expert gets on the text of a task."""
    device = next(model.parameters()).device
    sums = passed(task, tokens, rows, place, device.type, lambda b: held_out_loss(model, task.objective, b, device))
    counts = {name.removeprefix("load/"): value for name, value in sums.values.items() if name.startswith("load/")}
    return {layer: count.double() / count.sum() for layer, count in counts.items()}


def shifts(
    before: Mapping[str, Mapping[str, Tensor]],
    after: Mapping[str, Mapping[str, Tensor]],
    earlier: Sequence[str],
    own: Sequence[str],
) -> dict[str, float]:
    """Total variation distances of expert loads, each 0 (the same) to 1 (no expert in common), by layer:

    drift/<task>/load_shift/<layer>        of a task's text, between the model before and after the stage
    drift/<task>/load_gap_before/<layer>   between an earlier task's text and the stage's own, before it; _after: after

    `before`, `after`: shares by task, layer and expert. Several own tasks count equally.
    """
    found = {}
    for task in (*earlier, *own):
        for layer, share in after[task].items():
            found[f"drift/{task}/load_shift/{layer}"] = variation(before[task][layer], share)
    for name, told in (("before", before), ("after", after)):
        for task in earlier if own else ():
            for layer, share in told[task].items():
                theirs = torch.stack([told[one][layer] for one in own]).mean(0)
                found[f"drift/{task}/load_gap_{name}/{layer}"] = variation(share, theirs)
    return found


def variation(one: Tensor, other: Tensor) -> float:
    """Total variation distance of two distributions: half the sum of their absolute differences."""
    return 0.5 * float((one - other).abs().sum())


def merged(model: Model, merge: Callable[[Any], None] | None) -> Any:
    """The model itself, or a copy whose adapter is merged into the weights, which then have their plain names."""
    if merge is None:
        return model
    plain = copy.deepcopy(model)
    merge(plain)
    return plain
