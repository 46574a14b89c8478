"""A-GEM: projects the gradient so that, to first order, a step does not raise the loss on earlier samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kleiber.retention.memory import device_of, draws, memory_tokens, ranks, real, summed, trainable
from kleiber.types.contracts import Objective, Retention, Samples, Task
from kleiber.types.model import Model


class AGEM(Retention):
    """g <- g - (g.r / r.r) r where g.r < 0, r the gradient on `rows` samples of earlier tasks.

    Chaudhry et al. 2018, arXiv:1812.00420, eq. 11. The promise is about g itself: an optimizer that rescales
    coordinates (Adam) or remembers (momentum) can still raise the reference loss. Which samples is a function of (seed,
    step). One more forward and backward of `rows` samples a step, and one more gradient in memory.

    rows    reference samples of a step, over all ranks, shared equally by the earlier tasks
    memory  at most that many tokens of each earlier task are kept to be drawn from, spread evenly over its training
            text (the paper's episodic memory); null: all of it, whether the model has read it or not
    """

    def __init__(self, rows: int = 8, memory: int | float | str | None = None) -> None:
        super().__init__()
        if rows < 1:
            raise ValueError(f"retention.agem.rows={rows}: give a number of reference samples from 1")
        self.rows, self.kept = rows, memory_tokens("agem", memory)
        self.tasks: list[Task] = []

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        self.memory = {"seed": seed}

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        self.tasks = real(tasks, "agem", self.kept)
        return train

    def gradients(self, model: Model, step: int) -> dict[str, Tensor]:
        parameters = [parameter for parameter in trainable(model).values() if parameter.grad is not None]
        reference = self.reference(model, parameters, step)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        along = sum((g * r).sum() for g, r in zip(gradients, reference, strict=True))
        size = sum(r.square().sum() for r in reference)
        assert isinstance(along, Tensor) and isinstance(size, Tensor)
        if along < 0:
            for g, r in zip(gradients, reference, strict=True):
                g.sub_(r * (along / size))
        return {"agem": (along < 0).float()}

    def reference(self, model: Model, parameters: list[nn.Parameter], step: int) -> list[Tensor]:
        """Gradient of the mean, over the earlier tasks, of their mean losses on this step's reference samples."""
        device, (rank, world) = device_of(model), ranks()
        total = [torch.zeros_like(parameter) for parameter in parameters]
        each = max(1, self.rows // len(self.tasks))
        for number, task in enumerate(self.tasks):
            assert task.train is not None
            positions = draws(np.arange(each), self.memory["seed"], step, number) % np.uint64(len(task.train))
            mine = positions.astype(np.int64)[rank::world]
            part, tokens = [torch.zeros_like(parameter) for parameter in parameters], torch.zeros(1, device=device)
            if len(mine):
                loss = task.objective(model, task.train.gather(mine).to(device))
                # Not through .grad: nothing is added to the step's own gradient, and no rank waits for another.
                gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
                part = [z if g is None else g for z, g in zip(part, gradients, strict=True)]
                tokens += loss.tokens
            *part, tokens = summed([*part, tokens])
            torch._foreach_addcdiv_(total, part, [tokens.clamp_min(1.0) * len(self.tasks)] * len(part))
        return total
