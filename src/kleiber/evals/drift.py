"""How far a finished stage moved its model: in its weights, its predictions on earlier text, and its expert loads.

The divergence of predictions needs no labels. It is the measure of forgetting of Kalajdzievski 2024 (arXiv:2401.05605,
section 3) minus the entropy of the start model, which training does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kleiber.config.labels import data_label
from kleiber.data.batches import evaluation_batches
from kleiber.evals.task_scores import Runtime, held_out_loss, score_task
from kleiber.nn.loss import kl_divergence
from kleiber.nn.sharded_model import copy_model
from kleiber.types.batch import Batch, Loss, Sums
from kleiber.types.contracts import Objective, Task
from kleiber.types.model import Model, device_of, evaluation_mode
from kleiber.types.score import Metric, Score, Scores, described

METRICS = {
    "weights": Metric("relative change of the weights", "lower"),
    "kl": Metric("divergence from the start model", "lower", "nats per token"),
    "untrained": Metric("loss of the untrained model", "none", "nats per token"),
    "load_shift/{layer}": Metric("shift of the expert loads, layer {layer},", "lower"),
    "load_gap_before/{layer}": Metric("load gap to the new text before training, layer {layer},", "none"),
    "load_gap_after/{layer}": Metric("load gap to the new text after training, layer {layer},", "none"),
}
Loads = Mapping[str, Mapping[str, Tensor]]  # shares of the experts, by task and by layer


@torch.no_grad()
def divergence(
    start: Model, model: Model, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> Sums:
    """Sums of KL(start || model) over the targets of `batches`, as "kl", in nats; the caller reduces over ranks.

    Raises ValueError for an objective that predicts no distribution.
    """
    if not objective.has_predictions:
        raise ValueError(
            f"objective={type(objective).__name__} predicts no distribution, so it has no divergence: choose another "
            "objective, such as clm or mlm"
        )
    sums = Sums()
    start.eval()
    with evaluation_mode(model):
        for batch in batches:
            batch = batch.to(device)
            before, after = objective.predictions(start, batch), objective.predictions(model, batch)
            total = kl_divergence(before.hidden, before.head, after.hidden, after.head, after.weights)
            sums.add(Loss(total, after.weights.sum(), {"kl": total}))
    return sums


@torch.no_grad()
def weight_distance(start: nn.Module, model: nn.Module) -> dict[str, float]:
    """l2 = |theta - theta_start| and relative = l2 / |theta_start|, over the parameters that are in both models."""
    start_weights, squared_distance, squared_norm = dict(start.named_parameters()), 0.0, 0.0
    for name, parameter in model.named_parameters():
        if name in start_weights:
            squared_distance += (parameter - start_weights[name]).double().square().sum().item()
            squared_norm += start_weights[name].double().square().sum().item()
    relative = (squared_distance / squared_norm) ** 0.5 if squared_norm else float("nan")
    return {"l2": squared_distance**0.5, "relative": relative}


def drift_metrics(
    start: Model,
    model: Model,
    earlier_tasks: Sequence[Task],
    stage_tasks: Sequence[Task],
    tokens: int,
    rows: int,
    runtime: Runtime,
) -> Scores:
    """Distances between the model before a stage (`start`) and after it, on the first `tokens` targets of each task.

    drift/weights    |theta - theta_start| / |theta_start|
    drift/<task>/kl  KL(start || model) in nats per target, for each earlier task whose objective predicts distributions

    A mixture of experts also has the metrics of `load_shifts`.
    """
    relative = weight_distance(start, model)["relative"]
    scores = {"drift/weights": described(Score(relative), METRICS, "weights")}
    device = device_of(model)
    for task in earlier_tasks:
        if task.objective.has_predictions:
            sums = sum_over_task(
                task,
                tokens,
                rows,
                runtime,
                device.type,
                lambda batches, task=task: divergence(start, model, task.objective, batches, device),
            )
            scores |= drift_score(task.name, "kl", sums.means()["kl"].item())
    if model.routes:
        tasks = (*earlier_tasks, *stage_tasks)
        before = {task.name: expert_loads(start, task, tokens, rows, runtime) for task in tasks}
        after = {task.name: expert_loads(model, task, tokens, rows, runtime) for task in tasks}
        earlier_names, stage_names = ([task.name for task in group] for group in (earlier_tasks, stage_tasks))
        scores |= load_shifts(before, after, earlier_names, stage_names)
    return scores


def drift_score(task: str, metric: str, value: float) -> Scores:
    """A score of a task, by its key drift/<task>/<metric>."""
    return {f"drift/{task}/{metric}": described(Score(value), METRICS, metric, f"on {data_label(task)}")}


def untrained_losses(model: Model, earlier_tasks: Sequence[Task], tokens: int, rows: int, runtime: Runtime) -> Scores:
    """drift/<task>/untrained: the loss of a model before any training, in nats per target, on the first `tokens`.

    The untrained loss minus the loss of the start model is what the start model had learned of a task. Studies report
    forgetting as a share of it.
    """
    scores: Scores = {}
    for task in earlier_tasks:
        scores |= drift_score(task.name, "untrained", score_task(model, task, tokens, rows, runtime)["loss"].value)
    return scores


def sum_over_task(
    task: Task,
    tokens: int,
    rows: int,
    runtime: Runtime,
    device_type: str,
    sum_batches: Callable[[Iterable[Batch]], Sums],
) -> Sums:
    """`sum_batches` of the first `tokens` targets of a task, added up over all ranks."""
    held_out = task.held_out.first(tokens)
    rank, world_size = runtime.share(held_out)
    with torch.autocast(device_type, torch.bfloat16, enabled=runtime.autocast):
        sums = sum_batches(evaluation_batches(held_out, rows, None, rank, world_size))
    return sums.reduce() if world_size > 1 else sums


def expert_loads(model: Model, task: Task, tokens: int, rows: int, runtime: Runtime) -> dict[str, Tensor]:
    """By layer, the share of the assignments that each expert gets on the text of a task."""
    device = device_of(model)
    sums = sum_over_task(
        task, tokens, rows, runtime, device.type, lambda batches: held_out_loss(model, task.objective, batches, device)
    )
    counts = {name.removeprefix("load/"): value for name, value in sums.values.items() if name.startswith("load/")}
    return {layer: count.double() / count.sum() for layer, count in counts.items()}


def load_shifts(before: Loads, after: Loads, earlier_tasks: Sequence[str], stage_tasks: Sequence[str]) -> Scores:
    """Total variation distances of expert loads by layer, from 0 (equal) to 1 (no expert in common).

    drift/<task>/load_shift/<layer>       between the model before and after the stage, on the text of a task
    drift/<task>/load_gap_before/<layer>  between the text of an earlier task and that of the stage, before the stage
    drift/<task>/load_gap_after/<layer>   the same after the stage

    Several tasks of the stage count equally.
    """
    shifts: Scores = {}
    for task in (*earlier_tasks, *stage_tasks):
        for layer, share in after[task].items():
            shifts |= drift_score(task, f"load_shift/{layer}", total_variation(before[task][layer], share))
    if not stage_tasks:
        return shifts
    for name, loads in (("before", before), ("after", after)):
        for task in earlier_tasks:
            for layer, share in loads[task].items():
                stage_share = torch.stack([loads[stage_task][layer] for stage_task in stage_tasks]).mean(0)
                shifts |= drift_score(task, f"load_gap_{name}/{layer}", total_variation(share, stage_share))
    return shifts


def total_variation(first: Tensor, second: Tensor) -> float:
    """Total variation distance of two distributions: half the sum of their absolute differences."""
    return 0.5 * float((first - second).abs().sum())


def merge_copy(model: Model, merge: Callable[[Model], None] | None) -> Model:
    """A copy of the model in which `merge` has merged the adapter into the weights; the model itself for None."""
    if merge is None:
        return model
    merged_model = copy_model(model)
    merge(merged_model)
    return merged_model
