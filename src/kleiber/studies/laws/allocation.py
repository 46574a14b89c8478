"""The compute-optimal model size N_opt = k C^a from rows of (N, D, C, loss): envelope, IsoFLOP parabolas, fitted law.

These are approaches 1 to 3 of Hoffmann et al. 2022, section 3, arXiv:2203.15556. They use the same rows but make
different errors, so the report warns if they disagree. Approaches 1 and 2 ignore a minimum at the smallest or largest
size of a budget, since the true minimum may lie beyond it.

`expected_half_width` tells before training how precisely planned points will determine the loss at an optimum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from kleiber.inference.parabola import fit_parabola
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.uncertainty import Draws, interval, student_quantile
from kleiber.types.score import format_interval

EXAMPLE = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}  # at which a law is compared with a formula


@dataclass(frozen=True)
class Exponent:
    """The exponent a of N_opt ~ C^a from one approach, its interval, and the points {C, N, lo, hi} of the fit."""

    approach: str
    a: float
    lo: float
    hi: float
    points: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Vertex:
    """The optimum at one compute budget: log N, its standard error (delta method), and that error's degrees of freedom.

    df  rows less parameters of the parabola; 0 without one
    """

    compute: float
    log_n: float
    se: float = 1.0
    df: int = 0


def envelope(N: Array, C: Array, loss: Array, num_budgets: int = 24) -> list[Vertex]:
    """Approach 1: at each budget of a log grid, the size with the lowest loss on its curve of loss over compute.

    Requires final losses (of cooldown branches or of schedules matched to the training length), not losses along one
    cosine schedule. A budget is used if at least three sizes reach it and the best is neither the smallest nor the
    largest.
    """
    curves = _curves(N, C, loss)
    if len(curves) < 3:
        return []
    optima = []
    for budget in np.geomspace(C.min(), C.max(), num_budgets):
        here = [(size, _at(curve, budget)) for size, curve in curves if curve[0][0] <= budget <= curve[0][-1]]
        if len(here) < 3:
            continue
        best = int(np.argmin([value for _, value in here]))
        if 0 < best < len(here) - 1:
            optima.append(Vertex(float(budget), float(np.log(here[best][0]))))
    return optima


def vertices(N: Array, C: Array, loss: Array, span: float = 0.15, max_sizes: float = 8.0) -> list[Vertex]:
    """Approach 2: fits L = c0 + c1 x + c2 x^2, x = log N, at each budget; N_opt = exp(-c1 / (2 c2)).

    A minimum is kept if c2 > 0 and it lies between the smallest and largest size. A budget is a group of rows within
    `span` in log C with at least four sizes. Where fewer than three such groups exist, as in a grid of N and D, the
    curve of each size is interpolated in log C to common budgets. Sizes that differ from the best by more than a factor
    `max_sizes` are ignored, since the loss is a parabola only near its minimum (arXiv:2603.22339).
    """
    groups = budget_groups(N, C, loss, span) or _interpolated(N, C, loss)
    optima = []
    for budget, sizes, losses in groups:
        x = np.log(sizes)
        near = np.abs(x - x[np.argmin(losses)]) <= np.log(max_sizes)
        vertex = _parabola(float(budget), x[near], losses[near])
        if vertex is not None:
            optima.append(vertex)
    return optima


def _parabola(budget: float, x: Array, losses: Array) -> Vertex | None:
    if len(np.unique(np.round(x, 6))) < 4:
        return None
    fit = fit_parabola(x, losses)
    if fit is None or not x.min() < fit.vertex < x.max():
        return None
    return Vertex(budget, fit.vertex, fit.spread(fit.squares / fit.df), df=fit.df)


def regress(approach: str, points: list[Vertex], level: float = 0.9) -> Exponent | None:
    """Fits log N_opt = log k + a log C by weighted least squares, with a t interval; None below three points.

    Approach 1 has equal weights; others have 1 / (se^2 + median(se)^2).
    """
    if len(points) < 3:
        return None
    x, y, se = np.array([(point.compute, point.log_n, point.se) for point in points]).T
    x = np.log(x)
    centre = x.mean()
    weight = np.ones_like(x) if approach.startswith("1") else 1 / (se**2 + np.median(se) ** 2 + 1e-12)
    (a, _), covariance = np.polyfit(x - centre, y, 1, w=np.sqrt(weight), cov=True)
    half = student_quantile(len(x) - 2, level) * float(np.sqrt(covariance[0, 0]))
    bars = [_bar(point, level, with_interval=not approach.startswith("1")) for point in points]
    return Exponent(approach, float(a), float(a - half), float(a + half), bars)


def _bar(point: Vertex, level: float, with_interval: bool) -> dict[str, float]:
    """Returns the point {C, N} and, with `with_interval`, its t interval lo, hi."""
    half = student_quantile(point.df, level) * point.se
    bar = {"C": point.compute, "N": float(np.exp(point.log_n))}
    if with_interval:
        bar |= {
            "lo": float(np.exp(point.log_n - half)),
            "hi": float(np.exp(point.log_n + half)),
        }
    return bar


def disagreement(exponents: list[Exponent], tolerance: float = 0.1) -> str | None:
    """Returns a sentence if two exponents differ by more than `tolerance`, or their intervals do not overlap."""
    for i, first in enumerate(exponents):
        for other in exponents[i + 1 :]:
            apart = abs(first.a - other.a)
            if apart > tolerance or first.lo > other.hi or other.lo > first.hi:
                return (
                    f"the approaches disagree on the allocation exponent: {first.approach} gives a = {first.a:.3f} "
                    f"{format_interval(first.lo, first.hi, '.3f')}, but {other.approach} gives a = {other.a:.3f} "
                    f"{format_interval(other.lo, other.hi, '.3f')}"
                )
    return None


def beta_of(params: Mapping[str, float]) -> float:
    """Returns the exponent of the tokens: alpha where a law has one exponent for both terms."""
    return params.get("beta", params["alpha"])


def loss_at(params: Mapping[str, float], N: float, D: float) -> float:
    """Returns E + A N^-alpha + B D^-beta."""
    return params.get("E", 0.0) + params["A"] * N ** -params["alpha"] + params["B"] * D ** -beta_of(params)


def is_additive(law: Law) -> bool:
    """Returns whether a law is E + A N^-alpha + B D^-beta, of which E and beta may be missing (see `loss_at`).

    The names of its parameters do not decide this, since a law may use them in other ways: it is also evaluated.
    """
    if set(law.inputs) != {"N", "D"} or not {"A", "B", "alpha"} <= {*law.params, *law.fixed} <= EXAMPLE.keys():
        return False
    values = np.array([[EXAMPLE[name] for name in law.params]])
    params = {name: float(column[0]) for name, column in law.named(values).items()}
    N, D = np.array([1e7, 1e9, 3e9]), np.array([1e10, 3e8, 1e11])
    expected = [loss_at(params, n, d) for n, d in zip(N, D, strict=True)]
    return bool(np.allclose(law.predict({"N": N, "D": D}, values), expected, rtol=1e-9))


def optimum(values: Mapping[str, Array], compute: float) -> tuple[Array, Array]:
    """Returns N_opt = G (C/6)^a and D_opt = (C/6)^b / G for each draw of the parameters, at C = 6 N D.

    G = (alpha A / (beta B))^(1 / (alpha + beta)), a = beta / (alpha + beta), b = 1 - a.
    """
    alpha, beta = values["alpha"], values.get("beta", values["alpha"])
    with np.errstate(all="ignore"):
        G = (alpha * values["A"] / (beta * values["B"])) ** (1 / (alpha + beta))
        a = beta / (alpha + beta)
        return G * (compute / 6) ** a, (compute / 6) ** (1 - a) / G


def allocation(draws: Draws, budgets: Array, level: float = 0.9) -> list[dict[str, float]]:
    """Returns N_opt and D_opt at each budget with intervals from the draws; empty for laws that are not additive."""
    law = draws.fit.law
    if not is_additive(law) or draws.fit.dropped or len(draws.fit.undetermined()):
        return []
    sampled, point = law.named(draws.values), law.named(draws.fit.values)
    rows = []
    for budget in budgets:
        row = {"C": float(budget)}
        for label, best, spread in zip("ND", optimum(point, budget), optimum(sampled, budget), strict=True):
            lo, hi = interval(spread, level)
            row |= {label: float(best[0]), f"{label}_lo": float(lo), f"{label}_hi": float(hi)}
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Noise:
    """Assumed covariance of log losses: s^2 [(1 - rho) I + rho (same trunk) + kappa exp(-d^2 / 2 ell^2)].

    s      standard deviation of the log loss between seeds
    rho    fraction of the variance between seeds that the branches of a trunk share
    kappa  variance of the law's lack of fit, in units of s^2; 0 assumes that the law is exact
    ell    correlation length of the lack of fit; the distance d of two points is Euclidean in (ln N, ln D)
    """

    s: float = 0.005
    rho: float = 0.5
    kappa: float = 4.0
    ell: float = 1.5

    def covariance(self, N: Array, D: Array, trunk: NDArray[np.int64]) -> Array:
        """Returns the covariance matrix of the log losses at the points, divided by s^2, (points, points)."""
        place = np.log(np.column_stack([N, D]))
        squared_distance = ((place[:, None] - place[None]) ** 2).sum(2)
        seed = (1 - self.rho) * np.eye(len(N)) + self.rho * (trunk[:, None] == trunk[None])
        return seed + self.kappa * np.exp(-squared_distance / (2 * self.ell**2))


def log_loss_gradient(law: Mapping[str, float], N: Array, D: Array) -> Array:
    """Returns d log L / d (log E, log A, log B, alpha, beta) of L = E + A N^-alpha + B D^-beta, (points, 5)."""
    parts = np.column_stack([np.full(len(N), law["E"]), law["A"] * N ** -law["alpha"], law["B"] * D ** -law["beta"]])
    share = parts / parts.sum(1, keepdims=True)
    return np.column_stack([share, -share[:, 1] * np.log(N), -share[:, 2] * np.log(D)])


def expected_half_width(
    N: Array, D: Array, trunk: NDArray[np.int64], law: Mapping[str, float], compute: float, noise: Noise = Noise()
) -> float:
    """Returns the expected half-width of the 90 % interval of the loss predicted at the optimum of `compute` FLOPs.

    It is relative to the loss, and inf for points that do not determine the law.

    N, D, trunk  parameters, tokens and number of the trunk of each planned point; branches of a trunk share noise
    law          assumed values of E, A, B, alpha and beta
    """
    basis = log_loss_gradient(law, N, D)
    scale = np.linalg.norm(basis, axis=0)
    information = (basis / scale).T @ np.linalg.solve(noise.covariance(N, D, trunk), basis / scale)
    if len(N) < basis.shape[1] or np.linalg.cond(information) > 1e14:
        return float("inf")
    best = optimum({name: np.array([value]) for name, value in law.items()}, compute)
    wanted = log_loss_gradient(law, *best)[0] / scale
    variance = float(wanted @ np.linalg.solve(information, wanted))
    return float(ndtri(0.95)) * noise.s * variance**0.5


def _curves(N: Array, C: Array, loss: Array) -> list[tuple[float, tuple[Array, Array]]]:
    """Returns (N, (C, loss)) for each size with at least two budgets; replicates are averaged."""
    curves = []
    for size in np.unique(N):
        rows = size == N
        budgets = np.unique(C[rows])
        if len(budgets) > 1:
            curves.append((float(size), (budgets, np.array([loss[rows & (c == C)].mean() for c in budgets]))))
    return curves


def _at(curve: tuple[Array, Array], budget: float) -> float:
    """Interpolates the loss of a curve at a budget, linearly in log C and log loss."""
    return float(np.exp(np.interp(np.log(budget), np.log(curve[0]), np.log(curve[1]))))


def budget_groups(N: Array, C: Array, loss: Array, span: float = 0.15) -> list[tuple[float, Array, Array]]:
    """Groups the rows by budget; a row starts a new group if its log C exceeds that of the group's first row by `span`.

    Returns (C, sizes, losses) of the groups with at least four sizes, or nothing if there are fewer than three such
    groups.
    """
    order = np.argsort(C, kind="stable")
    groups: list[list[int]] = []
    for i in order:
        if groups and np.log(C[i] / C[groups[-1][0]]) <= span:
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    full = [np.array(g) for g in groups if len(np.unique(N[g])) >= 4]
    return [(float(np.exp(np.log(C[g]).mean())), N[g], loss[g]) for g in full] if len(full) >= 3 else []


def _interpolated(N: Array, C: Array, loss: Array, num_budgets: int = 6) -> list[tuple[float, Array, Array]]:
    """Returns (C, sizes, losses) at up to `num_budgets` budgets at which the curves of at least four sizes overlap."""
    curves = _curves(N, C, loss)
    groups = []
    for budget in np.geomspace(C.min(), C.max(), 4 * num_budgets):
        here = [(size, _at(curve, budget)) for size, curve in curves if curve[0][0] <= budget <= curve[0][-1]]
        if len(here) >= 4:
            groups.append((float(budget), np.array([s for s, _ in here]), np.array([v for _, v in here])))
    keep = np.unique(np.linspace(0, len(groups) - 1, num_budgets).round().astype(int)) if groups else []
    return [groups[i] for i in keep]
