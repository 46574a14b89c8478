"""The samples of a step of DP-SGD, and its gradients: clipped for each sample, summed, and with noise.

Samples are drawn as the accountants of differential privacy assume. The batch of a step is a pure function of seed and
step, so resuming costs nothing, as with the order of `data.batches`.

Each sample has a forward and a backward pass of its own, so its gradient is exact whatever the model does within a
pass: dropout, experts with a balance loss, masks. What couples the samples of a step outside of a pass is refused
(`check_private`, and `config.cross_checks`), because clipping would not bound the influence of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kleiber.data.batches import SamplesWithOrder, sample_numbers
from kleiber.data.order import poisson_sample
from kleiber.optimizers.privacy import DPSGD, PrivateSteps
from kleiber.training.step import add_penalty, micro_batches, step_counts
from kleiber.types.batch import Batch, Sums
from kleiber.types.contracts import Objective, Samples
from kleiber.types.model import Model, Router
from kleiber.types.retention import Retention

NOISE = 0x5EED  # part of the seed of the noise, which differs from that of a step's other random numbers


def check_private(model: Model, objective: Objective, samples: Samples) -> None:
    """Raises ValueError for what makes the gradient of a sample depend on other samples."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(f"privacy=dp_sgd: the statistics of {name} are those of the batch: choose another model")
        if isinstance(module, Router) and type(module).rebalance is not Router.rebalance:
            raise ValueError(
                f"privacy=dp_sgd: the router {type(module).__name__} changes with the load of the whole batch, which "
                "is not private: choose model/router=topk"
            )
    if objective.couples_samples:
        raise ValueError(
            f"privacy=dp_sgd: under objective={type(objective).__name__.lower()} the loss of a sample depends on "
            "other samples: choose another objective"
        )
    if isinstance(samples, SamplesWithOrder):
        raise ValueError(
            "privacy=dp_sgd draws every sample with equal probability, and data=mixture has fixed fractions: choose "
            "other data"
        )


def plan_private_steps(
    settings: DPSGD, model: Model, objective: Objective, samples: Samples, rows: int, steps: int
) -> PrivateSteps:
    """The noise of each of `steps` steps of about `rows` samples.

    Raises ValueError for what couples samples, and for settings that do not fit the number of samples or steps.
    """
    check_private(model, objective, samples)
    return settings.plan(len(samples), rows, steps)


def private_gradients(
    model: Model,
    objective: Objective,
    batch: Batch,
    backward: Callable[[Tensor], None],
    privacy: PrivateSteps,
    generator: torch.Generator,
    retention: Sequence[Retention] = (),
    step: int = 0,
) -> Sums:
    """Sets the gradients to the clipped sum of those of the samples' mean losses, plus noise; returns the sums.

    Without a sample, the sums are 0, and there is no mean loss.

    The noise has the standard deviation privacy.noise * privacy.clip in each entry. Gradients are to be divided by
    `privacy.rows`, not by the samples of the batch, of which there may be none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    sums = Sums()
    for sample in micro_batches(batch, 1) if len(batch) else []:
        loss = objective(model, sample)
        targets, counts = step_counts(model, objective, [sample], retention, step)  # no other sample may count
        for method, method_counts in counts:
            loss = add_penalty(loss, method.penalty(model, sample, step, method_counts), targets)
        backward(loss.total / loss.tokens.clamp(min=1))
        add_clipped(totals, parameters, privacy.clip)
        sums.add(loss)
    if not len(batch):  # the step still has noise
        sums.values = dict.fromkeys(("total", "tokens", "ce"), torch.zeros((), device=parameters[0].device))
    for parameter, total in zip(parameters, totals, strict=True):
        noise = torch.empty_like(total).normal_(generator=generator)
        parameter.grad = total.add_(noise, alpha=privacy.noise * privacy.clip)
    return sums


def add_clipped(totals: Sequence[Tensor], parameters: Sequence[nn.Parameter], clip: float) -> None:
    """Adds the gradients of the parameters to `totals`, scaled to a norm of at most `clip`, and deletes them."""
    reached = [(total, p.grad) for total, p in zip(totals, parameters, strict=True) if p.grad is not None]
    gradients = [gradient for _, gradient in reached]
    if gradients:
        norm = torch.nn.utils.get_total_norm(gradients)
        # A gradient that is not finite makes the step's norm NaN, which ends the run.
        torch._foreach_mul_(gradients, (clip / norm.clamp(min=clip)).to(gradients[0].dtype))
        torch._foreach_add_([total for total, _ in reached], gradients)
    for parameter in parameters:
        parameter.grad = None


def noise_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of a step's noise: a function of seed and step, so that a resumed run draws the same."""
    generator = torch.Generator(device)
    generator.manual_seed(hash((seed, step, NOISE)) % 2**63)
    return generator


def poisson_stream(samples: Samples, seed: int, start_step: int, rate: float) -> Iterator[Batch]:
    """Yields batches in which every sample is with probability `rate`, independently at every step, for one process.

    Each sample is the same at every step, as differential privacy needs: windows of text do not move. The sample
    numbers count on, so random masks differ. A batch may have no samples.
    """
    step = start_step
    while True:
        ids = poisson_sample(len(samples), rate, seed, step)
        batch = (
            samples.gather(ids) if len(ids) else samples.gather(np.zeros(1, np.int64)).map(lambda tensor: tensor[:0])
        )
        yield replace(batch, samples=sample_numbers(ids, step, len(samples)))
        step += 1
