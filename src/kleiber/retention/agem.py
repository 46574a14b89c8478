"""A-GEM: projects the gradient so that, to first order, a step does not increase the loss on earlier samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kleiber.config.stages import Quantity, quantity
from kleiber.nn.moe import counts_over_ranks
from kleiber.nn.sharding import full_parameters, inner_product, place_by_name
from kleiber.retention.memory import (
    random_bits,
    tasks_with_samples,
    trainable,
)
from kleiber.types import Count
from kleiber.types.contracts import Objective, Samples, Task
from kleiber.types.model import Model, device_of
from kleiber.types.ranks import all_reduce_together, rank, world_size
from kleiber.types.retention import Retention


class AGEM(Retention):
    """g <- g - (g.r / r.r) r where g.r < 0, with r the gradient on `rows` reference samples of earlier tasks.

    Chaudhry et al. 2018, arXiv:1812.00420, eq. 11. The guarantee is for a step along g: an optimizer that rescales
    coordinates (Adam) or has momentum can still increase the reference loss. The reference samples are a function of
    (seed, step). Each step costs a forward and backward pass of `rows` samples more, and memory for one more gradient.

    rows    reference samples per step, over all ranks, divided equally among the earlier tasks
    memory  number of tokens to keep of each earlier task, from which samples are drawn, spread evenly over its training
            text (the paper's episodic memory); null keeps all of it, whether or not the model was trained on it
    """

    reads_earlier_tasks = True

    def __init__(self, rows: Count = 8, memory: Quantity | None = None) -> None:
        super().__init__()
        self.rows, self.kept_tokens = rows, None if memory is None else quantity(memory)
        self.tasks: list[Task] = []

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Remembers the seed of the reference samples."""
        self.memory = {"seed": seed}

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The stage's samples as they are; the earlier tasks are kept for reference samples."""
        self.tasks = tasks_with_samples(tasks, "agem", self.kept_tokens)
        return train

    def extra_passes(self, rows: int) -> tuple[float, float]:
        """Passes over the reference samples."""
        return 0.0, max(1, self.rows // len(self.tasks)) * len(self.tasks) / rows

    def gradients(self, model: Model, step: int) -> dict[str, Tensor]:
        """Projects the gradients in place; logs "agem": 1 for a step whose gradient was projected, else 0."""
        gradients = {name: p.grad for name, p in trainable(model).items() if p.grad is not None}
        with full_parameters(model):
            parameters = [parameter for name, parameter in trainable(model).items() if name in gradients]
            whole = self.reference_gradient(model, parameters, step)
        reference = list(place_by_name(dict(zip(gradients, whole, strict=True)), model).values())
        product = inner_product(list(gradients.values()), reference)
        squared_norm = inner_product(reference, reference)
        # Chosen on the device, so that the host does not wait for the sign.
        share = torch.where(product < 0, product / squared_norm, 0.0)
        for g, r in zip(gradients.values(), reference, strict=True):
            g.sub_(r * share)
        return {"agem": (product < 0).float()}

    def reference_gradient(self, model: Model, parameters: list[nn.Parameter], step: int) -> list[Tensor]:
        """Gradient of the mean, over the earlier tasks, of their mean losses on this step's reference samples."""
        device = device_of(model)
        total = [torch.zeros_like(parameter) for parameter in parameters]
        each = max(1, self.rows // len(self.tasks))
        for number, task in enumerate(self.tasks):
            assert task.train is not None
            positions = random_bits(np.arange(each), self.memory["seed"], step, number) % np.uint64(len(task.train))
            first, rank_positions = positions.astype(np.int64)[:1], positions.astype(np.int64)[rank() :: world_size()]
            part, tokens = [torch.zeros_like(parameter) for parameter in parameters], torch.zeros(1, device=device)
            # A rank without samples passes over the first one where the others wait for its counts of assignments.
            passed = rank_positions if len(rank_positions) or not counts_over_ranks(model) else first
            if len(passed):
                loss = task.objective(model, task.train.gather(passed).to(device))
                # Without .grad, nothing is added to the step's gradient, and no gradient waits for another rank.
                gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
                if len(rank_positions):
                    part = [z if g is None else g for z, g in zip(part, gradients, strict=True)]
                    tokens += loss.tokens
            *part, tokens = all_reduce_together([*part, tokens])
            torch._foreach_addcdiv_(total, part, [tokens.clamp_min(1.0) * len(self.tasks)] * len(part))
        return total
