"""Every sample is drawn with the same probability at every step, and a resumed run draws the same samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kleiber.data.poisson import poisson_stream
from kleiber.data.token_files import TokenFile, TrainWindows


def windows(count: int = 400) -> TrainWindows:
    return TrainWindows(TokenFile(np.arange(count * 4 + 1, dtype=np.uint16), count, count, "x"), 4)


def test_every_sample_is_drawn_with_the_rate_at_every_step_alike() -> None:
    samples, rate = windows(), 0.05
    stream = poisson_stream(samples, 3, 0, rate)
    batches = [next(stream) for _ in range(300)]
    sizes = np.array([len(rows) for rows in batches])
    assert sizes.mean() == pytest.approx(20, abs=1) and sizes.var() == pytest.approx(20 * 0.95, rel=0.25)
    times = np.bincount(np.concatenate([rows.tokens[:, 0].numpy() // 4 for rows in batches]), minlength=400)
    assert times.mean() == pytest.approx(15, abs=0.6) and times.var() == pytest.approx(15 * 0.95, rel=0.25)
    assert len({int(n) for rows in batches for n in rows.samples}) == sizes.sum()  # type: ignore[union-attr]
    resumed = next(poisson_stream(samples, 3, 200, rate))
    assert torch.equal(resumed.tokens, batches[200].tokens) and torch.equal(resumed.samples, batches[200].samples)  # type: ignore[arg-type]
    assert len(next(poisson_stream(samples, 3, 0, 1.0))) == 400
    assert min(len(next(poisson_stream(samples, seed, 0, 0.0005))) for seed in range(20)) == 0
