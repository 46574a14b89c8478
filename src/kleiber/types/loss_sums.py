"""Running sums of losses over micro-batches, batches and ranks, and the means they end in.

A mean is taken once, at the end, of sums: so it is the same for every split into batches and ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kleiber.types.batch import Loss


class Sums:
    """Sums of "total", "tokens" and each metric of the losses added so far."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        for name, value in {"total": loss.total, "tokens": loss.tokens, **loss.metrics}.items():
            value = value.detach()
            self.values[name] = self.values[name] + value if name in self.values else value

    def reduce(self) -> Sums:
        """Adds up over all ranks, in one collective; every rank must have added the same metrics."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # fp64 keeps token counts exact: fp32 stops counting at 2^24.
            flat = torch.cat([value.reshape(-1).double() for value in self.values.values()])
            dist.all_reduce(flat)
            parts = flat.split([value.numel() for value in self.values.values()])
            self.values = {
                name: part.view(value.shape).to(value.dtype)
                for (name, value), part in zip(self.values.items(), parts, strict=True)
            }
        return self

    def means(self) -> dict[str, Tensor]:
        """Means per target token; "tokens" and vectors of counts (load/...) stay as they are."""
        tokens = self.values["tokens"]
        return {n: v if n == "tokens" or n.startswith("load/") else v / tokens for n, v in self.values.items()}
