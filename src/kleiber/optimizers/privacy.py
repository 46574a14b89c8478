"""Differentially private training: the settings of DP-SGD, and the privacy that its steps spend.

A sample is what the data calls one: a window of text, a conversation, a labeled text. The guarantee is about weights of
a run that differ in one sample (added or removed). `training/private_step.py` clips and adds noise.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from jaxtyping import Float

from kleiber.types import Json, Positive

DEFAULT_EPSILON = 8.0
LARGE_ORDERS = (80, 96, 128, 192, 256, 512)  # of Rényi divergences: with those of opacus alone, epsilon is above .1
PRECISION = 0.01  # relative, of epsilon
MOST_NOISE = 2.0**20  # beyond it, no epsilon is small enough to be asked for
CLOSE = 1e-4  # noise multipliers that differ by less are not told apart
PARTS = 5  # of a run, for which the epsilon that is logged is computed
MOST_EXACT = 20.0  # above it, epsilon is the bound by Rényi divergences: the other one would take minutes


@dataclass(frozen=True)
class PrivateSteps:
    """DP-SGD for a number of samples and steps.

    noise    standard deviation of the noise over `clip`
    clip     largest norm of the gradient of a sample's mean loss
    rate     probability that a sample is in the batch of a step (Poisson sampling)
    samples  number of training samples
    """

    noise: float
    clip: float
    delta: float
    rate: float
    samples: int

    @property
    def rows(self) -> float:
        """Expected samples of a batch, by which the sum of the gradients is divided."""
        return self.rate * self.samples

    def epsilon(self, steps: int) -> float:
        """The epsilon of `steps` steps, by the accountant of privacy loss random variables of opacus; 0 for no steps.

        It is an upper bound that is about 1 % high (Gopi et al. 2021, arXiv:2106.02848), for the subsampled Gaussian
        mechanism under Poisson sampling.
        """
        return epsilon_spent(self.noise, self.rate, self.delta, steps) if steps else 0.0

    def epsilon_within(self, steps: int, total: int) -> float:
        """An upper bound of the epsilon of `steps` steps of a run of `total`: that at the end of the fifth of the run.

        The accountant takes a second, too long for every step.
        """
        part = -(-total // PARTS)
        return self.epsilon(min(-(-steps // part) * part, max(total, steps)))

    def accountant(self, steps: int) -> str:
        """The accountant of opacus by which `epsilon` is computed: "prv", or "rdp" above MOST_EXACT."""
        return "rdp" if steps and renyi_bound(self.noise, self.rate, self.delta, steps) > MOST_EXACT else "prv"

    def record(self, steps: int) -> Json:
        """What summary.json says about the privacy of a stage."""
        return {
            "epsilon": self.epsilon(steps), "delta": self.delta, "noise_multiplier": self.noise, "clip": self.clip,
            "sample_rate": self.rate, "samples": self.samples, "steps": steps, "accountant": self.accountant(steps),
            "sampling": "poisson", "neighbors": "add or remove one sample",
        }  # fmt: skip

    def describe(self, steps: int) -> str:
        """A line on the privacy of `steps` steps."""
        return (
            f"epsilon {self.epsilon(steps):.3g}, delta {self.delta:g} for each of {self.samples:,} samples; noise "
            f"{self.noise:.3g} x clip {self.clip:g}, about {self.rows:.0f} random samples a step"
        )


@cache
def epsilon_spent(noise: float, rate: float, delta: float, steps: int) -> float:
    """The epsilon of a number of steps. Rényi divergences give a bound that sets the precision, and stands if lower."""
    from opacus.accountants import PRVAccountant

    bound = renyi_bound(noise, rate, delta, steps)
    if bound > MOST_EXACT:
        return bound
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the Rényi divergences by which the accountant chooses its grid
        epsilon = accountant.get_epsilon(delta, eps_error=bound * PRECISION)
    return float(min(bound, epsilon))


def renyi_bound(noise: float, rate: float, delta: float, steps: int) -> float:
    """An upper bound of epsilon by Rényi divergences (Mironov et al. 2019, arXiv:1908.10530), in milliseconds."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders, divergences = step_divergences(noise, rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the last: the bound is valid, and not the tightest
        epsilon, _ = get_privacy_spent(orders=orders, rdp=(steps * divergences).tolist(), delta=delta)
    return float(epsilon)


@cache
def step_divergences(noise: float, rate: float) -> tuple[list[float], Float[np.ndarray, "_"]]:
    """The Rényi divergence of a step for each order, as opacus computes it; those of several steps add up."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [*RDPAccountant.DEFAULT_ALPHAS, *LARGE_ORDERS]
    return orders, np.asarray(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders))


@dataclass(frozen=True)
class DPSGD:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133), with any optimizer.

    The gradient of each sample is clipped, and noise is added to their sum, before the optimizer reads it.

    epsilon           to spend until the last step; null: what `noise_multiplier` leads to, or 8 where that is null too
    noise_multiplier  standard deviation of the noise over `clip`; null: what `epsilon` needs
    delta             must be below 1 / samples, since a model that prints a random sample has delta = 1 / samples
    clip              largest norm of the gradient of a sample's mean loss
    """

    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5
    clip: Positive = 1.0

    def plan(self, samples: int, rows: int, steps: int) -> PrivateSteps:
        """The noise for `steps` batches of about `rows` of the `samples` training samples.

        Raises ValueError for two settings of the noise, for batches of more than all samples, and for a delta that
        protects nothing.
        """
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                f"privacy.epsilon={self.epsilon:g} and privacy.noise_multiplier={self.noise_multiplier:g} exclude each "
                "other: remove one"
            )
        if rows > samples:
            raise ValueError(
                f"privacy=dp_sgd draws about {rows:,} of {samples:,} samples a step: set a smaller batch.tokens"
            )
        if self.delta >= 1 / samples:
            raise ValueError(f"privacy.delta={self.delta:g} must be < 1 / {samples:,} training samples")
        rate = rows / samples
        noise = self.noise_multiplier
        if noise is None:
            noise = noise_for(DEFAULT_EPSILON if self.epsilon is None else self.epsilon, self.delta, rate, steps)
        return PrivateSteps(noise, self.clip, self.delta, rate, samples)


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier with which `steps` steps spend at most `epsilon`, and at least 98 % of it.

    Raises ValueError where no noise up to MOST_NOISE is enough.
    """
    high = 1.0
    while renyi_bound(high, rate, delta, steps) > epsilon:
        high *= 2
        if high > MOST_NOISE:
            raise ValueError(f"privacy.epsilon={epsilon:g} is too small for privacy.delta={delta:g}: raise it")
    low = high / 2
    while (at_low := epsilon_spent(low, rate, delta, steps)) <= epsilon:
        high, low = low, low / 2
    at_high = epsilon_spent(high, rate, delta, steps)
    while at_high < (1 - 2 * PRECISION) * epsilon and high > (1 + CLOSE) * low:
        share = math.log(epsilon * (1 - PRECISION) / at_high) / math.log(at_low / at_high)
        noise = high * (low / high) ** min(max(share, 0.1), 0.9)
        at_noise = epsilon_spent(noise, rate, delta, steps)
        if at_noise <= epsilon:
            high, at_high = noise, at_noise
        else:
            low, at_low = noise, at_noise
    return high
