"""Less text, read more often: another data set with all but the first of its training samples left out.

Validation stays that of the whole set, so losses at different amounts of unique text are of the same text. It refuses
more text than there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from kleiber.budget import quantity
from kleiber.data.cache import digest
from kleiber.types import Batch, Samples


@dataclass(frozen=True)
class Repeated:
    """`data` with its first `unique` training tokens alone (null: all of them); a longer budget reads them again.

    From the second epoch on windows begin elsewhere (`windows.TrainWindows`), so at most one more window is read.
    `max_bytes` is handed to `data`, where set.
    """

    data: Any
    unique: int | float | str | None = None
    max_bytes: int | float | str | None = None

    def prepare(self, context: int, cache: Path | None = None) -> Any:
        """Raises ValueError when the data set has fewer tokens."""
        data = self.data if self.max_bytes is None else replace(self.data, max_bytes=self.max_bytes)
        corpus = data.prepare(context, cache)
        if self.unique is None:
            return corpus
        count = max(1, round(quantity(self.unique)) // context)
        if count > len(corpus.train):
            raise ValueError(
                f"data.unique={self.unique} is more than {corpus.name} has: {corpus.train.num_tokens:,} training tokens"
            )
        name = digest([corpus.hash, "first", count * context])
        return replace(corpus, train=First(corpus.train, count), config=f"{corpus.config}, first {count}", hash=name)


class First:
    """The first `count` samples of others."""

    def __init__(self, samples: Samples, count: int) -> None:
        self.samples, self.count = samples, count
        self.num_tokens = samples.num_tokens * count // len(samples)
        self.num_bytes = samples.num_bytes * count // len(samples)

    def __len__(self) -> int:
        return self.count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        return self.samples.gather(index, epoch)
