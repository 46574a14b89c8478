"""Elastic weight consolidation: a penalty on changes of the weights that matter for the likelihood of earlier tasks.

Weights matter by their Fisher information: the mean of squared gradients of single sequences with labels drawn from the
model. (The square of a batch's mean gradient is smaller.) Objectives without a distribution over outcomes are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.data.order import Permutation
from kleiber.nn.loss import cross_entropy
from kleiber.nn.moe import counts_over_ranks
from kleiber.nn.sharding import full_parameters, inner_product, place_by_name
from kleiber.retention.memory import (
    new_heads,
    remembered,
    snapshot,
    tasks_with_samples,
    trainable,
)
from kleiber.types import Count, Positive, Share
from kleiber.types.contracts import Predictions, Task
from kleiber.types.model import Head, Model, device_of, evaluation_mode
from kleiber.types.ranks import all_reduce_together, rank, world_size
from kleiber.types.retention import Retention


class EWC(Retention):
    """strength/2 sum_i F_i (theta_i - theta*_i)^2, added to the mean loss. Kirkpatrick et al. 2017, arXiv:1612.00796,
    eq. 3.

    The gradient of the penalty is added once per step, which costs two passes over the weights; the value is logged. F
    is divided by its mean for each task, so the same strength can be used across tasks and models. After several stages
    F <- gamma F + F_new, and theta* are the weights at the beginning of the last stage: online EWC, Schwarz et al.
    2018, arXiv:1805.06370, section 3.2. F is a sum over the earlier tasks: with gamma 1 each has the weight 1, whether
    the tasks were trained one by one in this run or before it.

    strength  coefficient of the penalty of each earlier task
    samples   number of sequences of each earlier task from which F is estimated, with one backward pass each
    gamma     weight of the F of earlier stages
    """

    reads_earlier_tasks = True

    def __init__(self, strength: Positive = 1.0, samples: Count = 256, gamma: Share = 1.0) -> None:
        super().__init__()
        self.strength, self.samples, self.gamma = strength, samples, gamma

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Remembers the weights, and adds the Fisher information that is not part of it yet.

        That is the information of new tasks, and of old tasks on weights that were frozen when it was computed: the
        output layer over tokens, where the stage before this one did not read it.
        """
        older, covered = self.memory.get("fisher", {}), self.memory.get("tasks", {})
        names = trainable(model).keys()
        missing = {task.name: names - new_heads(model) - covered.get(task.name, {}).keys() for task in tasks}
        incomplete = [task for task in tasks if missing[task.name]]
        decay = self.gamma if any(task.name not in covered for task in tasks) else 1.0
        total = {name: decay * value for name, value in older.items()}
        usable = tasks_with_samples(incomplete, "ewc") if incomplete or not older else []
        for number, task in enumerate(usable):
            with full_parameters(model):
                information = fisher(model, task, self.samples, seed + number)
            for name, value in place_by_name(information, model).items():
                if name in missing[task.name]:
                    total[name] = total[name] + value if name in total else value
        now = {task.name: {**covered.get(task.name, {}), **dict.fromkeys(names, True)} for task in tasks}
        self.memory = {"start": snapshot(model), "fisher": total, "tasks": {**covered, **now}}

    @torch.no_grad()
    def gradients(self, model: Model, step: int) -> dict[str, Tensor]:
        """Adds the gradient of the penalty in place; logs its value as "ewc"."""
        changes: list[Tensor] = []
        gradients: list[Tensor] = []
        for name, parameter, start in remembered(model, self.memory["start"]):
            if name in self.memory["fisher"]:
                changes.append(parameter - start)
                gradients.append(self.memory["fisher"][name] * changes[-1] * self.strength)
                parameter.grad = gradients[-1].clone() if parameter.grad is None else parameter.grad.add_(gradients[-1])
        return {"ewc": 0.5 * inner_product(gradients, changes)}


def fisher(model: Model, task: Task, samples: int, seed: int) -> dict[str, Tensor]:
    """Diagonal of the Fisher information at the model's weights, by trainable parameter, divided by its mean.

    F_i = E_x E_{y ~ p(.|x)} (d log p(y|x) / d theta_i)^2, with x a sequence of the task and y one draw for each of its
    targets. The sequences are divided among the ranks. Raises ValueError where the likelihood does not depend on any
    trainable weight.
    """
    fisher = raw_fisher(model, task, samples, seed)
    mean = sum(value.sum().item() for value in fisher.values()) / sum(value.numel() for value in fisher.values())
    if not mean > 0:
        raise ValueError(
            f"retention.ewc: the mean Fisher information of {task.name} over the trainable weights is {mean}, but must "
            "be > 0: train weights on which the predictions of this task depend, or remove retention.ewc"
        )
    return {name: value / mean for name, value in fisher.items()}


def raw_fisher(model: Model, task: Task, samples: int, seed: int) -> dict[str, Tensor]:
    """`fisher` before it is divided by its mean, in nats^2 per squared unit of the weight and sequence."""
    if not task.objective.has_predictions:
        raise ValueError(
            f"retention.ewc needs distributions over outcomes, which objective={type(task.objective).__name__} of the "
            f"earlier task {task.name} does not predict: remove ewc, or start from a run with another objective"
        )
    assert task.train is not None
    parameters, device = trainable(model), device_of(model)
    count = len(task.train)
    chosen = Permutation(count, seed)(np.arange(min(samples, count)))
    sums = [torch.zeros_like(parameter) for parameter in parameters.values()]
    share = chosen[rank() :: world_size()]
    rounds = -(-len(chosen) // world_size()) if counts_over_ranks(model) else len(share)
    with evaluation_mode(model):
        for number, sample in enumerate([*share, *chosen[:1]][:rounds]):
            batch = task.train.gather(sample.reshape(1)).to(device)
            generator = torch.Generator(device).manual_seed(seed * 1_000_003 + int(sample))
            loss = sampled_loss(task.objective.predictions(model, batch), generator)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None and number < len(share):  # else a pass whose counts the other ranks wait for
                    total.addcmul_(gradient, gradient)
    return {name: total / len(chosen) for name, total in zip(parameters, all_reduce_together(sums), strict=True)}


def sampled_loss(predictions: Predictions, generator: torch.Generator) -> Float[Tensor, ""]:
    """-log p(y) of outcomes y drawn from the model's distributions, as a weighted sum over them."""
    head, hidden, weights = predictions.head, predictions.hidden.flatten(0, -2), predictions.weights.flatten()
    labels = torch.cat([sample_outcomes(head(rows), generator) for rows in hidden.detach().split(256)])
    if isinstance(head, Head):
        return cross_entropy(hidden, head, labels, weights).total
    return (F.cross_entropy(head(hidden), labels, reduction="none") * weights).sum()


@torch.no_grad()
def sample_outcomes(logits: Float[Tensor, "rows outcomes"], generator: torch.Generator) -> Int[Tensor, "rows"]:
    """One outcome per row, drawn from the softmax of its logits."""
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator).squeeze(1)
