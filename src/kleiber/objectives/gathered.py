"""What every rank has collected, on every rank: one whole in the order of the samples, however they were shared out."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Collected:
    """Rows by sample number. `whole` has each sample once, in order, so no metric of it can depend on the ranks."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.columns: list[dict[str, Tensor]] = []

    def add(self, samples: Tensor | None, **columns: Tensor) -> None:
        assert samples is not None, "samples are told apart by their numbers"
        self.samples.append(samples.detach().cpu())
        self.columns.append({name: value.detach().cpu() for name, value in columns.items()})

    def whole(self) -> dict[str, Tensor]:
        mine: Any = (self.samples, self.columns)
        parts: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, mine)
        samples = torch.cat([s for part in parts for s in part[0]])
        order = torch.argsort(samples, stable=True)
        first = torch.ones(len(samples), dtype=torch.bool)
        first[1:] = samples[order][1:] != samples[order][:-1]  # with few samples every rank has scored all
        columns = [columns for part in parts for columns in part[1]]
        return {name: torch.cat([c[name] for c in columns])[order[first]] for name in columns[0]}
