"""What a set of (N, D) points will tell about the loss at a larger compute, before any of them is trained.

The law's log loss is linearised at planned parameters and the noise of the points has three parts: each run's own, the
share that branches of one trunk have in common, and a smooth lack of fit, without which replicating tiny runs would pay
for ever. It prices designs under an assumed law; it refuses to say anything about the law's bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.allocation import optimum
from kleiber.studies.laws.law import Array

PARAMETERS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Noise:
    """Covariance of log losses: s^2 [(1 - rho) I + rho (same trunk) + kappa exp(-d^2 / 2 ell^2)].

    s      sd of the log loss over seeds
    rho    share of the seed variance that branches of one trunk have in common
    kappa  variance of the law's misfit, in units of s^2; 0 believes the law
    ell    distance d in (log N, log D), natural logs, over which misfit stays alike
    """

    s: float = 0.005
    rho: float = 0.5
    kappa: float = 4.0
    ell: float = 1.5

    def covariance(self, points: Points) -> Array:
        """The matrix in units of s^2, (points, points)."""
        place = np.log(np.column_stack([points.N, points.D]))
        apart = ((place[:, None] - place[None]) ** 2).sum(2)
        together = points.trunk[:, None] == points.trunk[None]
        seed = (1 - self.rho) * np.eye(len(points)) + self.rho * together
        return seed + self.kappa * np.exp(-apart / (2 * self.ell**2))


@dataclass(frozen=True)
class Points:
    """Points of a design: parameters, tokens, the trunk each branches from, and training FLOPs per token."""

    N: Array
    D: Array
    trunk: NDArray[np.int64]
    flops_per_token: Array

    def __len__(self) -> int:
        return len(self.N)

    def keep(self, mask: NDArray) -> Points:
        return Points(self.N[mask], self.D[mask], self.trunk[mask], self.flops_per_token[mask])

    def join(self, other: Points) -> Points:
        """Both, the trunks of `other` as trunks of their own."""
        shift = 1 + int(self.trunk.max()) if len(self) else 0
        return Points(
            np.concatenate([self.N, other.N]), np.concatenate([self.D, other.D]),
            np.concatenate([self.trunk, other.trunk + shift]),
            np.concatenate([self.flops_per_token, other.flops_per_token]),
        )  # fmt: skip

    def cost(self, decay: float) -> float:
        """FLOPs of every trunk to its longest branch, and of every branch's cooldown over `decay` of its tokens."""
        return float(sum(self.trunk_costs(decay).values()))

    def trunk_costs(self, decay: float) -> dict[int, float]:
        """FLOPs by trunk: ((1 - decay) max D + decay sum D) FLOPs per token."""
        costs = {}
        for trunk in np.unique(self.trunk):
            rows = self.trunk == trunk
            tokens = (1 - decay) * self.D[rows].max() + decay * self.D[rows].sum()
            costs[int(trunk)] = float(tokens * self.flops_per_token[rows][0])
        return costs


def gradient(law: Mapping[str, float], N: Array, D: Array) -> Array:
    """d log L / d (log E, log A, log B, alpha, beta) of L = E + A N^-alpha + B D^-beta, (points, 5)."""
    parts = np.column_stack([np.full(len(N), law["E"]), law["A"] * N ** -law["alpha"], law["B"] * D ** -law["beta"]])
    share = parts / parts.sum(1, keepdims=True)
    return np.column_stack([share, -share[:, 1] * np.log(N), -share[:, 2] * np.log(D)])


def target(law: Mapping[str, float], flops: float) -> Array:
    """The gradient at the compute-optimal point of `flops`: the combination whose variance a design makes small."""
    values = {name: np.array([law[name]]) for name in PARAMETERS}
    N, D = optimum(values, flops)
    return gradient(law, N, D)[0]


def log_variance(points: Points, law: Mapping[str, float], flops: float, noise: Noise) -> float:
    """log of the variance, in units of s^2, of the predicted log loss at the optimum of `flops`; inf when singular."""
    basis = gradient(law, points.N, points.D)
    scale = np.linalg.norm(basis, axis=0)
    solved = np.linalg.solve(noise.covariance(points), basis / scale)
    information = (basis / scale).T @ solved
    if len(points) < len(PARAMETERS) or np.linalg.cond(information) > 1e14:
        return float("inf")
    wanted = target(law, flops) / scale
    return float(np.log(wanted @ np.linalg.solve(information, wanted)))


def half_width(points: Points, law: Mapping[str, float], flops: float, noise: Noise, z: float = 1.645) -> float:
    """Expected half-width of the 90 % interval of log L at the optimum of `flops`, a relative error of the loss."""
    return float(z * noise.s * np.exp(0.5 * log_variance(points, law, flops, noise)))
