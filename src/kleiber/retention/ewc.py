"""Elastic weight consolidation: holds weights more tightly the more the earlier tasks' likelihood depends on them.

The Fisher information is the true one: squared gradients of single sequences with labels drawn from the model, not the
square of a batch's mean gradient. Objectives without a distribution over outcomes are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.data.batches import permutation
from kleiber.nn.loss import cross_entropy
from kleiber.retention.memory import beside, device_of, ranks, real, snapshot, summed, trainable
from kleiber.types.contracts import Predictions, Retention, Task
from kleiber.types.model import Head, Model


class EWC(Retention):
    """strength/2 sum_i F_i (theta_i - theta*_i)^2 on the mean loss: Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3.

    Its gradient is added once a step, which costs two passes over the weights; the value is logged. F has mean 1 for
    each task, so that strengths compare across tasks and models. After several stages F <- gamma F + F_new, with one
    anchor: online EWC, Schwarz et al. 2018, arXiv:1805.06370, section 3.2; gamma 1 forgets no task.

    strength  of the penalty
    samples   sequences of each earlier task from which F is estimated, one backward pass each
    gamma     weight of the older F
    """

    def __init__(self, strength: float = 1.0, samples: int = 256, gamma: float = 1.0) -> None:
        super().__init__()
        if strength <= 0 or samples < 1 or not 0 <= gamma <= 1:
            raise ValueError(
                f"retention.ewc: strength={strength} must be positive, samples={samples} at least 1, gamma={gamma} "
                "between 0 and 1"
            )
        self.strength, self.samples, self.gamma = strength, samples, gamma

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        older, task_names = self.memory.get("fisher", {}), self.memory.get("tasks", {})
        new = [task for task in tasks if task.name not in task_names]
        total = {name: self.gamma * value for name, value in older.items()} if new else older
        usable = real(new, "ewc") if new or not older else []
        for number, task in enumerate(usable):
            for name, value in fisher(model, task, self.samples, seed + number).items():
                total[name] = total[name] + value / len(usable) if name in total else value / len(usable)
        self.memory = {
            "start": snapshot(model), "fisher": total, "tasks": {**task_names, **{task.name: True for task in new}}
        }  # fmt: skip

    @torch.no_grad()
    def gradients(self, model: Model, step: int) -> dict[str, Tensor]:
        value = torch.zeros((), device=device_of(model))
        for name, parameter, start in beside(model, self.memory["start"]):
            if name in self.memory["fisher"]:
                away = parameter - start
                pull = self.memory["fisher"][name] * away * self.strength
                value += 0.5 * (pull * away).sum()
                parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
        return {"ewc": value}


def fisher(model: Model, task: Task, samples: int, seed: int) -> dict[str, Tensor]:
    """Diagonal of the Fisher information at the model's weights, by trainable parameter, divided by its mean.

    F_i = E_x E_{y ~ p(.|x)} (d log p(y|x) / d theta_i)^2, x a sequence of the task, y one draw for each of its targets.
    Ranks share the sequences. Raises ValueError where the model's likelihood does not depend on any trainable weight.
    """
    fisher = raw_fisher(model, task, samples, seed)
    mean = sum(value.sum().item() for value in fisher.values()) / sum(value.numel() for value in fisher.values())
    if not mean > 0:
        raise ValueError(f"retention.ewc: the Fisher information of {task.name} is {mean} for every trainable weight")
    return {name: value / mean for name, value in fisher.items()}


def raw_fisher(model: Model, task: Task, samples: int, seed: int) -> dict[str, Tensor]:
    """`fisher` before it is divided by its mean, in nats^2 per squared unit of the weight and sequence."""
    if not task.objective.has_predictions:
        kind = type(task.objective).__name__
        raise ValueError(f"retention.ewc: {task.name} was trained by {kind}, which is no likelihood of outcomes")
    assert task.train is not None
    parameters, device, (rank, world) = trainable(model), device_of(model), ranks()
    chosen = permutation(len(task.train), seed)[:samples]
    sums = [torch.zeros_like(parameter) for parameter in parameters.values()]
    training = model.training
    model.eval()
    for sample in chosen[rank::world]:
        batch = task.train.gather(sample.reshape(1)).to(device)
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + int(sample))
        likelihood = drawn_likelihood(task.objective.predictions(model, batch), generator)
        gradients = torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)
    model.train(training)
    return {name: total / len(chosen) for name, total in zip(parameters, summed(sums), strict=True)}


def drawn_likelihood(told: Predictions, generator: torch.Generator) -> Float[Tensor, ""]:
    """-log p(y) of outcomes y drawn from the model itself, summed over rows by their weights."""
    hidden, weights = told.hidden.flatten(0, -2), told.weights.flatten()
    labels = torch.cat([draw(told.head(rows), generator) for rows in hidden.detach().split(256)])
    if isinstance(told.head, Head):
        return cross_entropy(hidden, told.head, labels, weights).total
    return (F.cross_entropy(told.head(hidden), labels, reduction="none") * weights).sum()


@torch.no_grad()
def draw(logits: Float[Tensor, "rows outcomes"], generator: torch.Generator) -> Int[Tensor, "rows"]:
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator).squeeze(1)
