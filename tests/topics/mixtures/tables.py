"""Tables of simulated mixtures for tests of their law."""

import numpy as np
import pandas as pd

from kleiber_topics.mixtures.forms import Form


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
