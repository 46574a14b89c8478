"""Approaches 1 and 2 on a ladder of trunks: branch points lie on a grid of tokens, so budgets are met by interpolation.

A size's final losses are smooth in log C, a parabola through its branches. Approach 1 asks where two sizes tie, which
is where the envelope goes from one to the other; approach 2 cuts the curves at common budgets. Intervals are simulated
with noise that branches of a trunk share: interpolated budgets are no independent points. It refuses to extrapolate a
curve.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kleiber.studies.approaches import Exponent, Vertex
from kleiber.studies.bootstrap import interval
from kleiber.studies.law import Array
from kleiber.studies.variance_components import Layout, VarianceComponents

NEAR = 8.0  # ties of sizes farther apart than this factor say where neither is best
BUDGETS = 9
DRAWS = 120


@dataclass(frozen=True)
class Curve:
    """One size's final losses: log L a polynomial in log C (of degree 2 from three points on), between its ends."""

    log_n: float
    low: float
    high: float
    coefficients: Array

    def at(self, log_c: Array) -> Array:
        return np.asarray(np.polyval(self.coefficients, log_c), dtype=np.float64)


def curves(N: Array, C: Array, loss: Array) -> list[Curve]:
    """A curve for each size with two budgets or more; replicates enter as they are."""
    found = []
    for size in np.unique(N):
        x, y = np.log(C[size == N]), np.log(loss[size == N])
        distinct = len(np.unique(np.round(x, 6)))
        if distinct >= 2:
            fitted = np.polyfit(x, y, min(2, distinct - 1))
            found.append(Curve(float(np.log(size)), float(x.min()), float(x.max()), fitted))
    return found


def ties(found: list[Curve]) -> list[Vertex]:
    """Approach 1: where the curves of two sizes cross, the larger one winning above, N_opt is their geometric mean."""
    points = []
    for small, large in combinations(found, 2):
        low, high = max(small.low, large.low), min(small.high, large.high)
        if high <= low or large.log_n - small.log_n > np.log(NEAR):
            continue
        x = np.linspace(low, high, 200)
        gap = small.at(x) - large.at(x)
        up = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
        if len(up) == 1:
            k = int(up[0])
            where = x[k] - gap[k] * (x[k + 1] - x[k]) / (gap[k + 1] - gap[k])
            points.append(Vertex(float(np.exp(where)), (small.log_n + large.log_n) / 2, 1.0, 2))
    return points


def cuts(found: list[Curve], least: int = 3) -> list[Vertex]:
    """Approach 2: the vertex of the parabola in log N at budgets where `least` sizes or more have a curve.

    At most BUDGETS budgets, evenly over those that allow it; a vertex outside its sizes is no minimum and is left out.
    """
    ends = np.unique([end for curve in found for end in (curve.low, curve.high)])
    held = []  # between two ends the same sizes have a curve, however narrow the window
    for budget in np.unique([*np.linspace(ends[0], ends[-1], 48), *(ends[1:] + ends[:-1]) / 2]):
        here = [curve for curve in found if curve.low <= budget <= curve.high]
        if len(here) < least:
            continue
        x = np.array([curve.log_n for curve in here])
        y = np.array([float(curve.at(np.array(budget))) for curve in here])
        vertex = _vertex(x, y)
        if x.min() < vertex < x.max():
            held.append(Vertex(float(np.exp(budget)), float(vertex), 1.0, len(here)))
    keep = np.unique(np.linspace(0, len(held) - 1, BUDGETS).round().astype(int)) if held else []
    return [held[i] for i in keep]


def _vertex(x: Array, y: Array) -> float:
    """Where the least-squares parabola through (x, y) is least; nan when it opens downwards."""
    centre = float(x.mean())
    design = np.vander(x - centre, 3)
    c2, c1, _ = np.linalg.solve(design.T @ design, design.T @ y)
    return -c1 / (2 * c2) + centre if c2 > 0 else float("nan")


def exponents(
    N: Array, C: Array, loss: Array, noise: VarianceComponents | None, layout: Layout, level: float, seed: int = 0
) -> list[Exponent]:
    """Approaches 1 and 2 with intervals simulated by the noise of trunks and rows in log L; none where it is unknown.

    An approach needs three points, over budgets that differ by a fifth at least; else it is not reported.
    """
    if noise is None:
        return []
    drawn = noise.draw(np.random.default_rng(seed), DRAWS, layout)
    simulated = [curves(N, C, one) for one in np.exp(np.log(loss)[None] + drawn)]
    found = []
    for name, approach in (("1 envelope (ties)", ties), ("2 isoflop (interpolated)", cuts)):
        points = approach(curves(N, C, loss))
        line = _line(points)
        if line is None:
            continue
        lines = [one for curve in simulated if (one := _line(approach(curve))) is not None]
        if len(lines) < 0.8 * DRAWS:
            continue
        lo, hi = interval(np.array([slope for slope, _ in lines]), level)
        found.append(Exponent(name, line[0], float(lo), float(hi), line[1], _bars(points, lines, level)))
    return found


def _line(points: list[Vertex]) -> tuple[float, float] | None:
    """Slope and intercept of log N on log C by least squares."""
    if len(points) < 3:
        return None
    x, y = np.log([p.compute for p in points]), np.array([p.log_n for p in points])
    if np.ptp(x) < 0.2:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() - slope * x.mean())


def _bars(points: list[Vertex], lines: list[tuple[float, float]], level: float) -> list[dict[str, float]]:
    """The points, with intervals of N_opt at their compute from the line through each draw's points."""
    bars = []
    for point in points:
        spread = np.exp([slope * np.log(point.compute) + intercept for slope, intercept in lines])
        lo, hi = interval(spread, level)
        bars.append({"C": point.compute, "N": float(np.exp(point.log_n)), "lo": float(lo), "hi": float(hi)})
    return bars
