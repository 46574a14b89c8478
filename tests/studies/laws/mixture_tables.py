"""Tables of simulated mixtures and task scores for tests of their laws."""

import numpy as np
import pandas as pd

from kleiber.studies.laws.mixture_forms import Form


def mixtures(rows=48, domains=4, noise=0.01, seed=0, form="ridge", losses=1):
    """A table of mixtures whose losses follow a form, and the parameters of the form."""
    rng, other = np.random.default_rng([seed, rows]), np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(domains), size=rows)
    least, most = (-3.0, 1.0) if form == "exponential" else (-0.3, -0.05)
    slopes = other.uniform(least, most, (losses, domains))
    truth = np.column_stack([np.full(losses, 3.0), slopes])
    loss = Form(form, domains, 0.02).predict(truth, weights) + rng.normal(0, noise, (losses, rows))
    frame = pd.DataFrame(weights, columns=[f"w_{name}" for name in "abcdefgh"[:domains]])
    return frame.assign(**{f"loss_{i}": column for i, column in enumerate(loss)}), truth


def scores(noise=0.004, seed=0, floor=0.25):
    """A table of runs whose loss is a law of N and D, and whose score is a sigmoid of the loss."""
    rng = np.random.default_rng(seed)
    N, ratio = (part.ravel() for part in np.meshgrid(np.geomspace(1e8, 1.5e9, 5), [10.0, 20.0, 40.0, 80.0]))
    loss = 0.5 + 60 * N**-0.25 + 80 * (N * ratio) ** -0.25
    acc = floor + (1 - floor) * 0.9 / (1 + np.exp(5 * (loss - 1.1)))
    noisy = {"loss": loss * np.exp(rng.normal(0, noise / 2, 20)), "acc": acc + rng.normal(0, noise, 20)}
    return pd.DataFrame({"N": N, "D": N * ratio, **noisy})
