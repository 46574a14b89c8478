"""Poisson sampling of batches, which the accountants of differential privacy assume.

The batch of a step is a pure function of seed and step, so resuming costs nothing, as with the order of `data.batches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kleiber.data.batches import random_bits, sample_numbers
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples

POISSON = 0x901550  # part of the key, which differs from those of permutations


def poisson_stream(samples: Samples, seed: int, start_step: int, rate: float) -> Iterator[Batch]:
    """Yields batches in which every sample is with probability `rate`, independently at every step, for one process.

    Each sample is the same at every step, as differential privacy needs: windows of text do not move. The sample
    numbers count on, so random masks differ. A batch may have no samples.
    """
    step, threshold = start_step, np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
    while True:
        ids = np.flatnonzero(random_bits(len(samples), seed, POISSON, step) <= threshold)
        batch = (
            samples.gather(ids) if len(ids) else samples.gather(np.zeros(1, np.int64)).map(lambda tensor: tensor[:0])
        )
        yield replace(batch, samples=sample_numbers(ids, step, len(samples)))
        step += 1
