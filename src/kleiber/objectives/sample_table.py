"""A table of what a scorer keeps of each sample, gathered from all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kleiber.types.ranks import world_size


class SampleTable:
    """A table with one row per scored sample: every rank adds its batches, and `gather` returns those of all ranks."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.columns: list[dict[str, Tensor]] = []

    def add(self, samples: Tensor | None, **columns: Tensor) -> None:
        """Adds the values of each column for the samples of a batch."""
        assert samples is not None, "a scored batch has the numbers of its samples"
        self.samples.append(samples.detach().cpu())
        self.columns.append({name: value.detach().cpu() for name, value in columns.items()})

    def gather(self) -> dict[str, Tensor]:
        """The columns of all ranks, with each sample once and in order, so no metric depends on the number of ranks."""
        parts = [(self.samples, self.columns)]
        if world_size() > 1:
            gathered = [None] * world_size()
            dist.all_gather_object(gathered, parts[0])
            parts = [part for part in gathered if part is not None]
        samples = torch.cat([numbers for part_samples, _ in parts for numbers in part_samples])
        order = torch.argsort(samples, stable=True)
        first = torch.ones(len(samples), dtype=torch.bool)
        first[1:] = samples[order][1:] != samples[order][:-1]  # where samples are few, every rank has scored all
        columns = [batch_columns for _, part_columns in parts for batch_columns in part_columns]
        return {name: torch.cat([column[name] for column in columns])[order[first]] for name in columns[0]}
