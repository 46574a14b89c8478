"""The search of `design=optimal` for the (N, D) points with the least variance of a prediction per FLOP.

The log loss of an assumed law is linearized at its parameters. The covariance of the points has independent noise,
noise that the branches of a trunk share, and a smooth lack of fit; without the last, many cheap replicates of tiny
models would seem best. `Elimination` starts from a grid of candidates and removes the point that costs least variance
per FLOP saved. Without point i the variance is v + h_i^2 / P_ii, where h are the weights of the generalized
least-squares estimate and P is the projected precision. `exchange` then replaces and adds single points while that
reduces the variance. Both are greedy and deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.allocation import optimum
from kleiber.studies.laws.law import Array

PARAMETERS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Noise:
    """Covariance of log losses: s^2 [(1 - rho) I + rho (same trunk) + kappa exp(-d^2 / 2 ell^2)].

    s      standard deviation of the log loss between seeds
    rho    fraction of the variance between seeds that the branches of a trunk share
    kappa  variance of the law's lack of fit, in units of s^2; 0 assumes that the law is exact
    ell    correlation length of the lack of fit; the distance d of two points is Euclidean in (ln N, ln D)
    """

    s: float = 0.005
    rho: float = 0.5
    kappa: float = 4.0
    ell: float = 1.5

    def covariance(self, points: Points) -> Array:
        """Returns the covariance matrix of the log losses at the points, divided by s^2, (points, points)."""
        place = np.log(np.column_stack([points.N, points.D]))
        apart = ((place[:, None] - place[None]) ** 2).sum(2)
        together = points.trunk[:, None] == points.trunk[None]
        seed = (1 - self.rho) * np.eye(len(points)) + self.rho * together
        return seed + self.kappa * np.exp(-apart / (2 * self.ell**2))


@dataclass(frozen=True)
class Points:
    """Points of a design: active parameters N, tokens D, index of the trunk, FLOPs per token; each (points,)."""

    N: Array
    D: Array
    trunk: NDArray[np.int64]
    flops_per_token: Array

    def __len__(self) -> int:
        return len(self.N)

    def keep(self, mask: NDArray) -> Points:
        return Points(self.N[mask], self.D[mask], self.trunk[mask], self.flops_per_token[mask])

    def join(self, other: Points) -> Points:
        """Returns these points followed by those of `other`; their trunks remain different trunks."""
        shift = 1 + int(self.trunk.max()) if len(self) else 0
        return Points(
            np.concatenate([self.N, other.N]), np.concatenate([self.D, other.D]),
            np.concatenate([self.trunk, other.trunk + shift]),
            np.concatenate([self.flops_per_token, other.flops_per_token]),
        )  # fmt: skip

    def cost(self, decay: float) -> float:
        """Returns the FLOPs of all trunks up to their longest branch, and of all cooldowns.

        decay  fraction of the tokens of a branch that are its cooldown
        """
        return float(sum(self.trunk_costs(decay).values()))

    def trunk_costs(self, decay: float) -> dict[int, float]:
        """Returns the FLOPs of each trunk: ((1 - decay) max D + decay sum D) times FLOPs per token."""
        costs = {}
        for trunk in np.unique(self.trunk):
            rows = self.trunk == trunk
            tokens = (1 - decay) * self.D[rows].max() + decay * self.D[rows].sum()
            costs[int(trunk)] = float(tokens * self.flops_per_token[rows][0])
        return costs


def gradient(law: Mapping[str, float], N: Array, D: Array) -> Array:
    """Returns d log L / d (log E, log A, log B, alpha, beta) of L = E + A N^-alpha + B D^-beta, (points, 5)."""
    parts = np.column_stack([np.full(len(N), law["E"]), law["A"] * N ** -law["alpha"], law["B"] * D ** -law["beta"]])
    share = parts / parts.sum(1, keepdims=True)
    return np.column_stack([share, -share[:, 1] * np.log(N), -share[:, 2] * np.log(D)])


def target(law: Mapping[str, float], flops: float) -> Array:
    """Returns the gradient of the log loss at the compute-optimal point of `flops`, (5,); see `gradient`."""
    values = {name: np.array([law[name]]) for name in PARAMETERS}
    N, D = optimum(values, flops)
    return gradient(law, N, D)[0]


def log_variance(points: Points, law: Mapping[str, float], flops: float, noise: Noise) -> float:
    """Returns the log variance, in units of s^2, of the log loss predicted at the compute-optimal point of `flops`.

    It is inf for points that do not determine the law.
    """
    basis = gradient(law, points.N, points.D)
    scale = np.linalg.norm(basis, axis=0)
    solved = np.linalg.solve(noise.covariance(points), basis / scale)
    information = (basis / scale).T @ solved
    if len(points) < len(PARAMETERS) or np.linalg.cond(information) > 1e14:
        return float("inf")
    wanted = target(law, flops) / scale
    return float(np.log(wanted @ np.linalg.solve(information, wanted)))


def half_width(points: Points, law: Mapping[str, float], flops: float, noise: Noise, z: float = 1.645) -> float:
    """Returns the expected half-width of the interval of log L at the compute-optimal point of `flops`.

    It is a relative error of the loss; z=1.645 gives the 90 % interval.
    """
    return float(z * noise.s * np.exp(0.5 * log_variance(points, law, flops, noise)))


Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """The fewest points, distinct model sizes, and replicates that a design must have.

    A replicate is an (N, D) point that at least two trunks train.
    """

    points: int = 12
    sizes: int = 6
    replicates: int = 2


class Elimination:
    """Backward elimination of candidate points; it tracks the variance of the prediction under each of several laws.

    Points in the mask `fixed` are already trained: they reduce the variance, cost nothing and are never removed.
    """

    def __init__(
        self, points: Points, laws: Sequence[Mapping[str, float]], flops: float, noise: Noise, decay: float,
        rules: Rules = Rules(), fixed: Mask | None = None,
    ) -> None:  # fmt: skip
        self.points, self.decay, self.rules = points, decay, rules
        self.fixed = np.zeros(len(points), dtype=bool) if fixed is None else fixed
        self.alive = np.ones(len(points), dtype=bool)
        precision = np.asarray(np.linalg.inv(noise.covariance(points)), dtype=np.float64)
        states = [_state(precision, gradient(law, points.N, points.D), target(law, flops)) for law in laws]
        self.projected = np.stack([state[0] for state in states])
        self.weights = np.stack([state[1] for state in states])
        self.variance = np.array([state[2] for state in states])
        self.cells = np.unique(np.column_stack([points.N, points.D]), axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def log_variance(self) -> float:
        """Returns the log variance of the prediction, averaged over the laws."""
        return float(np.log(self.variance).mean())

    @property
    def cost(self) -> float:
        """Returns the FLOPs of the remaining points that are not trained yet."""
        return self.points.keep(self.alive & ~self.fixed).cost(self.decay)

    def step(self) -> bool:
        """Removes the point that costs least log variance per FLOP saved; False if the rules allow no removal."""
        may = self.alive & ~self.fixed & self._allowed()
        if not may.any():
            return False
        diagonal = np.maximum(np.einsum("lii->li", self.projected), 1e-300)
        loss = np.log1p(self.weights**2 / (diagonal * self.variance[:, None])).mean(0)
        price = np.where(may, loss / np.maximum(self._saved(), 1e-300), np.inf)
        self._delete(int(np.argmin(price)))
        return True

    def _delete(self, i: int) -> None:
        pivot = np.maximum(self.projected[:, i, i], 1e-300)
        self.variance = self.variance + self.weights[:, i] ** 2 / pivot
        column = self.projected[:, :, i] / pivot[:, None]
        self.weights = self.weights - column * self.weights[:, i, None]
        self.projected = self.projected - column[:, :, None] * self.projected[:, None, i, :]
        self.alive[i] = False

    def _saved(self) -> Array:
        """Returns the FLOPs saved by removing each point: its cooldown, and the end of the trunk for the longest."""
        points, saved = self.points, np.zeros(len(self.points))
        for trunk in np.unique(points.trunk[self.alive]):
            rows = np.flatnonzero(self.alive & (points.trunk == trunk))
            tokens = self.decay * points.D[rows]
            order = np.argsort(points.D[rows])
            shorter = points.D[rows][order[-2]] if len(rows) > 1 else 0.0
            tokens[order[-1]] += (1 - self.decay) * (points.D[rows][order[-1]] - shorter)
            saved[rows] = tokens * points.flops_per_token[rows]
        return saved

    def _allowed(self) -> Mask:
        """Returns the mask of the points that the rules allow to remove."""
        alive, points, rules = self.alive, self.points, self.rules
        if alive.sum() <= rules.points:
            return np.zeros(len(points), dtype=bool)
        allowed = np.ones(len(points), dtype=bool)
        sizes, members = np.unique(points.N[alive], return_counts=True)
        if len(sizes) <= rules.sizes:
            allowed &= ~np.isin(points.N, sizes[members == 1])
        twins = np.bincount(self.cells[alive], minlength=self.cells.max() + 1)
        if (twins >= 2).sum() <= rules.replicates:
            allowed &= twins[self.cells] != 2
        return allowed


def _state(precision: Array, basis: Array, wanted: Array) -> tuple[Array, Array, float]:
    """Returns what generalized least squares needs to estimate the linear combination `wanted` of the parameters.

    These are the precision of the observations after projection onto the complement of `basis` (the gradients of the
    parameters, (rows, parameters)), the weight of each observation, and the variance of the estimate.
    """
    scale = np.linalg.norm(basis, axis=0)
    basis, wanted = basis / scale, wanted / scale
    carried = precision @ basis
    inverse = np.linalg.inv(basis.T @ carried)
    return precision - carried @ inverse @ carried.T, carried @ inverse @ wanted, float(wanted @ inverse @ wanted)


MIN_GAIN = 1e-3  # an exchange within the budget must reduce the log variance by at least this
MAX_COST_RATIO = 0.99  # an exchange above the budget must reduce the cost to at most this fraction


def exchange(
    points: Points, laws: Sequence[Mapping[str, float]], flops: float, noise: Noise, decay: float, rules: Rules,
    alive: Mask, fixed: Mask, budget: float,
) -> tuple[Mask, float]:  # fmt: skip
    """Improves a design by replacing and adding single points; returns the mask of its points and its log variance.

    While the points outside `fixed` cost more than `budget` FLOPs, each step takes the replacement that loses least per
    FLOP saved; after that, the one that reduces the variance most. The log variance is that of the prediction at
    `flops`, averaged over the laws; it is inf if the budget is not reached.
    """
    covariance = noise.covariance(points)
    bases = np.stack([gradient(law, points.N, points.D) for law in laws])
    scale = np.linalg.norm(bases, axis=1, keepdims=True)
    bases, wanted = bases / scale, np.stack([target(law, flops) for law in laws]) / scale[:, 0]
    alive = alive.copy()
    for _ in range(2 * len(points)):
        spent, (now, _) = points.keep(alive & ~fixed).cost(decay), _variances(covariance, bases, wanted, alive)
        best, chosen = (-MIN_GAIN if spent <= budget else np.inf), None
        for out in (None, *np.flatnonzero(alive & ~fixed)):
            left = alive & (np.arange(len(alive)) != out)
            price, cost = _variances(covariance, bases, wanted, left)[1] - now, _costs(points, left & ~fixed, decay)
            may = ~alive & _kept(points, left, rules) & (cost <= max(MAX_COST_RATIO * spent, budget))
            if spent > budget:
                price = price / np.maximum(spent - cost, 1.0)
            price = np.where(may, price, np.inf)
            if price.min() < best:
                best, chosen = float(price.min()), (out, int(price.argmin()))
        if chosen is None:
            break
        alive[chosen[1]] = True
        if chosen[0] is not None:
            alive[chosen[0]] = False
    met = points.keep(alive & ~fixed).cost(decay) <= budget
    return alive, _variances(covariance, bases, wanted, alive)[0] if met else float("inf")


def _variances(covariance: Array, bases: Array, wanted: Array, left: Mask) -> tuple[float, Array]:
    """Returns the mean log variance with the points in `left`, and that with each further point, (points,)."""
    precision = np.linalg.inv(covariance[np.ix_(left, left)])
    carried = covariance[:, left] @ precision
    unexplained = np.maximum(covariance.diagonal() - np.einsum("jk,jk->j", carried, covariance[:, left]), 1e-12)
    news = bases - carried @ bases[:, left]  # residuals of the gradients on those in left, (laws, points, parameters)
    inverse = np.linalg.pinv(bases[:, left].transpose(0, 2, 1) @ precision @ bases[:, left], hermitian=True)
    toward = np.einsum("lp,lpq->lq", wanted, inverse)
    variance = np.einsum("lq,lq->l", toward, wanted)[:, None]
    spread = unexplained + np.einsum("ljp,lpq,ljq->lj", news, inverse, news, optimize=True)
    after = variance - np.einsum("lq,ljq->lj", toward, news) ** 2 / spread
    return float(np.log(variance).mean()), np.log(np.maximum(after, 1e-300)).mean(0)


def _costs(points: Points, paid: Mask, decay: float) -> Array:
    """Returns the FLOPs of the points in `paid` together with each further point, (points,)."""
    longest = np.zeros(points.trunk.max() + 1)
    np.maximum.at(longest, points.trunk[paid], points.D[paid])
    tokens = decay * points.D + (1 - decay) * np.maximum(points.D - longest[points.trunk], 0.0)
    return points.keep(paid).cost(decay) + tokens * points.flops_per_token


def _kept(points: Points, left: Mask, rules: Rules) -> Mask:
    """Returns the mask of the points whose addition to `left` satisfies the rules."""
    sizes = np.unique(points.N[left])
    cells = np.unique(np.column_stack([points.N, points.D]), axis=0, return_inverse=True)[1].reshape(-1)
    twins = np.bincount(cells[left], minlength=cells.max() + 1)
    kept = len(sizes) + ~np.isin(points.N, sizes) >= rules.sizes
    kept &= (twins >= 2).sum() + (twins[cells] == 1) >= rules.replicates
    return kept & bool(left.sum() + 1 >= rules.points)
