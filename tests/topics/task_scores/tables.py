"""Tables of simulated task scores for tests of their law."""

import numpy as np
import pandas as pd


def scores(noise=0.004, seed=0, floor=0.25):
    """A table of runs whose loss is a law of N and D, and whose score is a sigmoid of the loss."""
    rng = np.random.default_rng(seed)
    N, ratio = (part.ravel() for part in np.meshgrid(np.geomspace(1e8, 1.5e9, 5), [10.0, 20.0, 40.0, 80.0]))
    loss = 0.5 + 60 * N**-0.25 + 80 * (N * ratio) ** -0.25
    acc = floor + (1 - floor) * 0.9 / (1 + np.exp(5 * (loss - 1.1)))
    noisy = {"loss": loss * np.exp(rng.normal(0, noise / 2, 20)), "acc": acc + rng.normal(0, noise, 20)}
    return pd.DataFrame({"N": N, "D": N * ratio, **noisy})
