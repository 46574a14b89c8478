"""Less text, read more often: another data set with most of its training samples left out.

What is kept lies evenly over all of it and is as varied: the beginning of a text is narrower, and would cost loss
without being read twice. Validation stays that of the whole set. It refuses more text than there is.
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
    """`data` with `unique` of its training tokens alone (null: all of them); a longer budget reads them again.

    Every epoch has the same windows, so nothing else is ever read. `max_bytes` is handed to `data`, where set.
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
        name = digest([corpus.hash, "spread", count * context])
        return replace(corpus, train=Spread(corpus.train, count), config=f"{corpus.config}, {count} spread", hash=name)


class Spread:
    """`count` samples of others, at equal distances; the same in every epoch."""

    def __init__(self, samples: Samples, count: int) -> None:
        self.samples, self.count = samples, count
        self.num_tokens = samples.num_tokens * count // len(samples)
        self.num_bytes = samples.num_bytes * count // len(samples)

    def __len__(self) -> int:
        return self.count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        batch = self.samples.gather(np.asarray(index, np.int64) * len(self.samples) // self.count)
        if batch.samples is None:
            return batch
        return replace(batch, samples=batch.samples + epoch * len(self.samples))  # read again, but masked anew
