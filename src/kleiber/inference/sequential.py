"""Tests that are looked at after every pair of runs: exact boundaries of a group-sequential test, and an e-value.

A statistic that is looked at many times crosses the boundary of one look more often than the level says. The boundary
here is constant over looks (Pocock 1977, doi:10.1093/biomet/64.2.191), which stops early for large effects, and is
exact for a variance that is estimated from other runs: the chance of crossing is that of normal increments, by
numerical integration over their sums (Armitage, McPherson and Rowe 1969), averaged over the distribution of the
estimated standard deviation.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import gammaln, ndtr

Array = NDArray[np.float64]
NODES = 128  # of the quadrature over a sum
FAR = 9.0  # standard deviations beyond which a normal density is 0
BOUNDS = np.arange(0.0, FAR + 0.05, 0.05)  # at which the chance of crossing is tabulated
LARGEST = 1e3  # boundary; of three degrees of freedom at an error of 1e-8
SD_NODES = 400  # of the quadrature over the estimated standard deviation


@lru_cache(maxsize=4)
def quadrature(nodes: int) -> tuple[Array, Array]:
    """Returns the nodes and weights of a Gauss-Legendre quadrature over [-1, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return x, w


@lru_cache(maxsize=32)
def crossing_chances(looks: int) -> Array:
    """Returns the logarithm of P(S_k / sqrt(k) > b for a k <= looks) for each b of BOUNDS; S sums normal values."""
    x, w = quadrature(NODES)
    logs = []
    for bound in BOUNDS:
        low, high = -FAR, float(bound)
        sums, weights = grid(x, w, low, high)
        density, crossed = normal_density(sums), float(ndtr(-bound))
        for look in range(2, looks + 1):
            low, high = -FAR * math.sqrt(look), float(bound) * math.sqrt(look)
            crossed += float((density * weights * ndtr(sums - high)).sum())
            after, after_weights = grid(x, w, low, high)
            density = normal_density(after[:, None] - sums[None, :]) @ (density * weights)
            sums, weights = after, after_weights
        logs.append(math.log(max(crossed, 1e-300)))
    return np.array(logs)


def grid(x: Array, w: Array, low: float, high: float) -> tuple[Array, Array]:
    """Returns the nodes and weights of a quadrature between two limits."""
    return (high - low) / 2 * (x + 1) + low, w * (high - low) / 2


def normal_density(x: Array) -> Array:
    """Returns the density of the standard normal distribution."""
    return np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


def crossing_chance(bound: float, looks: int, df: float) -> float:
    """Returns the chance that sums of normal values cross a boundary at one of several looks.

    bound  of the mean in standard errors, with an estimated standard deviation
    df     degrees of freedom of the estimate, of which the values are independent; infinite where it is known
    """
    chances = crossing_chances(looks)
    if math.isinf(df):
        return float(np.exp(np.interp(bound, BOUNDS, chances)))
    x, w = quadrature(SD_NODES)
    # The density of s, the ratio of the estimated to the true standard deviation; s^2 df has df degrees of freedom.
    spread = 1 / math.sqrt(2 * df)
    s, weights = grid(x, w, max(1e-9, 1 - 10 * spread), 1 + 10 * spread)
    log_density = math.log(2) + df / 2 * math.log(df / 2) - gammaln(df / 2) + (df - 1) * np.log(s) - df * s**2 / 2
    near = np.minimum(bound * s, FAR)
    return float((np.exp(np.interp(near, BOUNDS, chances) + log_density) * weights).sum())


@lru_cache(maxsize=4096)
def boundary(error: float, looks: int, df: float) -> float:
    """Returns the boundary that means cross by chance with probability `error` at one of several looks.

    Raises ValueError for an error outside of (0, 0.5), and without degrees of freedom.
    """
    if not 0 < error < 0.5:
        raise ValueError(f"error={error} must be between 0 and 0.5")
    if not df > 0:
        raise ValueError(f"df={df} must be > 0")

    def excess(bound: float) -> float:
        """Returns how far the chance of crossing lies above the error, as a logarithm."""
        return math.log(max(crossing_chance(bound, looks, df), 1e-300)) - math.log(error)

    return root_scalar(excess, bracket=(0.0, LARGEST), xtol=1e-6).root if excess(LARGEST) < 0 else LARGEST


def e_value(total: float, count: int, scale: float = 2.0) -> float:
    """Returns how much more probable a sum of gains is under a better mean than under none: an e-value.

    It exceeds 1 / error at any time with a chance of at most `error` where the mean is 0 or worse, for normal values of
    known standard deviation (a mixture over half-normal means; Robbins 1970, doi:10.1214/aoms/1177696786).

    total  of `count` values, in units of their standard deviation
    scale  of the half-normal distribution of the better mean, in the same unit
    """
    precision = 1 + count * scale**2
    shift = total * scale / math.sqrt(precision)
    return 2 * float(ndtr(shift)) * math.exp(min(shift**2 / 2, 700.0)) / math.sqrt(precision)
