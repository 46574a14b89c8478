"""Sweeps of learning rate and batch at several sizes, with planted optima."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

EXPONENTS = {"lr_N": -0.6, "lr_D": 0.25, "batch_D": 0.45}
ROLES = {"N": "params", "D": "tokens", "L": "loss", "lr": "rate", "batch": "batch"}


def planted_rate(N: float, D: float) -> float:
    return 20 * N**-0.6 * D**0.25


def planted_batch(D: float) -> float:
    return 30 * D**0.45


def sweep(
    noise: float = 1e-3, scatter: float = 0.0, seed: int = 0, sizes: Sequence[float] = (1e7, 3e7, 1e8, 3e8),
    ratios: Sequence[float] = (10, 40, 160), rates: int = 8, batches: int = 6, shift: float = 0.0,
) -> pd.DataFrame:  # fmt: skip
    """A quadratic surface in log rate and log batch around each planted optimum.

    scatter  standard deviation of the log optima around the law
    shift    of the grid of rates, in log
    """
    rng, rows = np.random.default_rng(seed), []
    for N in sizes:
        for D in N * np.asarray(ratios, dtype=float):
            x = np.log(planted_rate(N, D)) + scatter * rng.normal()
            y = np.log(planted_batch(D)) + scatter * rng.normal()
            across = 0.55 * (np.arange(rates) - (rates - 1) / 2) + rng.uniform(-0.2, 0.2) + shift
            along = 0.7 * (np.arange(batches) - (batches - 1) / 2) + rng.uniform(-0.2, 0.2)
            u, v = (axis.ravel() for axis in np.meshgrid(across, along))
            level = 1.7 + 400 * N**-0.34 + 410 * D**-0.28
            surface = 0.008 * u**2 - 0.006 * u * v + 0.006 * v**2
            loss = level * np.exp(surface + noise * rng.normal(size=len(u)))
            rows.append(
                pd.DataFrame({"params": N, "tokens": D, "rate": np.exp(x + u), "batch": np.exp(y + v), "loss": loss})
            )
    return pd.concat(rows, ignore_index=True)
