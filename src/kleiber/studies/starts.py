"""Where a fit starts: variable projection over a grid of shapes, non-negative linear parts solved exactly.

For given exponents a law is linear in the rest, so nothing is guessed and nothing is random: the same table gives the
same starts. Prior art: variable projection for scaling laws (Open-Athena's VPNLS). It refuses to choose a winner.
"""

from collections.abc import Mapping
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.law import Array, Law, Linear, Shape
from kleiber.studies.solve import Problem, influence, rho, to_space


def candidates(problem: Problem, seed: Mapping[str, float], keep: int = 12) -> Array:
    """Starting rows for `descend`: the best of a grid of shapes, each with its linear parts solved.

    `seed` holds parameters that a simpler law has already found.
    """
    shapes = shape_grid(problem, seed)
    values = np.zeros((len(shapes), len(problem.law.params)))
    values[:, problem.law.shapes] = shapes
    if problem.law.linear:
        values[:, problem.law.linear] = solve_linear(problem, values)
    score = rho(problem.predict(problem.coordinates(values)) - problem.observed, problem.loss_fn, problem.delta).sum(1)
    return problem.coordinates(values[np.argsort(score, kind="stable")[:keep]])


def shape_grid(problem: Problem, seed: Mapping[str, float]) -> Array:
    """Shape parameters to try: a 12-per-axis grid up to two of them, 1024 low-discrepancy points beyond.

    Shapes in `seed` are held there and, in half of the points, jittered by up to e^(1/2).
    """
    law = problem.law
    names = list(law.params)
    kinds: list[Shape] = [k for k in law.params.values() if isinstance(k, Shape)]
    if not kinds:
        return np.zeros((1, 0))
    ends = np.array([(np.log(k.lo), np.log(k.hi)) if k.log else (k.lo, k.hi) for k in kinds])
    if len(kinds) <= 2:
        unit = np.array(list(product(np.linspace(0, 1, 12), repeat=len(kinds))))
    else:
        unit = _spread(1024, len(kinds))
    points = ends[:, 0] + unit * (ends[:, 1] - ends[:, 0])
    log = np.array([k.log for k in kinds])
    points = np.where(log, np.exp(np.where(log, points, 0.0)), points)
    if seed:
        jitter = np.exp(np.where(np.arange(len(points)) % 2, 0.0, 1.0)[:, None] * (unit - 0.5))
        for j, name in enumerate(names[i] for i in law.shapes):
            if seed.get(name):
                points[:, j] = seed[name] * jitter[:, j]
    return points


def _spread(count: int, dims: int) -> Array:
    """Low-discrepancy points in the unit cube: the additive recurrence of the generalised golden ratio."""
    ratio = 2.0
    for _ in range(30):
        ratio = (1 + ratio) ** (1 / (dims + 1))
    return (0.5 + np.arange(1, count + 1)[:, None] * ratio ** -np.arange(1.0, dims + 1)) % 1


def solve_linear(problem: Problem, values: Array, rounds: int = 4) -> Array:
    """Best linear parts (shapes given by row) by exact non-negative least squares, reweighted for the loss.

    On a log scale the residual is linearised, columns/L - 1, which is what a start needs; `descend` removes the rest.
    Signed parts enter freely; the others by the best feasible subset, since there are at most five.
    """
    law = problem.law
    columns = columns_of(problem, values)
    scale = "log10" if law.returns == "log10" else "linear"
    observed = to_space(problem.target, scale)
    weight = problem.scaled(1 / observed if problem.space != "linear" and scale == "linear" else np.ones_like(observed))
    offset = law.evaluate(problem.inputs, values * 0 + np.where(is_shape(law), values, 0.0))
    design, goal = columns * weight[None, :, None], (observed - offset) * weight
    pull = np.ones_like(goal)
    parts = np.zeros((len(values), len(law.linear)))
    for _ in range(rounds if problem.loss_fn != "squared" else 1):
        parts = _nonnegative(design, goal, pull, law, problem.active)
        r = np.einsum("brk,bk->br", design, parts) - goal
        pull = influence(r, "huber", problem.delta if problem.loss_fn == "huber" else 1e-3)
    return parts


def is_shape(law: Law) -> NDArray[np.bool_]:
    """True at the shape parameters."""
    return np.array([isinstance(kind, Shape) for kind in law.params.values()])


def columns_of(problem: Problem, values: Array) -> Array:
    """The law's terms per unit of each linear part, read off by setting one part to 1 (draws, rows, parts)."""
    law = problem.law
    bare = np.where(is_shape(law), values, 0.0)
    base = law.evaluate(problem.inputs, bare)
    columns = []
    for j in law.linear:
        unit = bare.copy()
        unit[:, j] = 1.0
        columns.append(law.evaluate(problem.inputs, unit) - base)
    return np.nan_to_num(np.stack(columns, axis=2), nan=0.0, posinf=0.0, neginf=0.0)


def _nonnegative(design: Array, goal: Array, pull: Array, law: Law, active: NDArray) -> Array:
    """Weighted least squares with the unsigned parts >= 0, by trying every subset of them."""
    kinds = [law.params[name] for name in law.params if isinstance(law.params[name], Linear)]
    on = [bool(active[j]) for j in law.linear]
    signed = [k for k, kind in enumerate(kinds) if isinstance(kind, Linear) and kind.signed and on[k]]
    others = [k for k, kind in enumerate(kinds) if isinstance(kind, Linear) and not kind.signed and on[k]]
    norm = np.maximum(np.sqrt((design**2).sum(1)), 1e-300)
    unit = design / norm[:, None, :]
    normal = np.einsum("brk,br,brl->bkl", unit, pull, unit, optimize=True)
    moment = np.einsum("brk,br->bk", unit, pull * goal)
    best, parts = np.full(len(unit), np.inf), np.zeros(norm.shape)
    for size in range(len(others) + 1):
        for chosen in combinations(others, size):
            index = np.array([*signed, *chosen], dtype=int)
            if not index.size:
                continue
            gram = normal[:, index[:, None], index] + 1e-12 * np.eye(len(index))
            x = np.linalg.solve(gram, moment[:, index, None])[:, :, 0]
            score = -(x * moment[:, index]).sum(1)
            feasible = (x[:, len(signed) :] >= 0).all(1) & (score < best)
            best = np.where(feasible, score, best)
            full = np.zeros_like(parts)
            full[:, index] = x
            parts = np.where(feasible[:, None], full, parts)
    tiny = 1e-6 * np.abs(goal).max() / np.sqrt(goal.shape[1])  # a start needs log coordinates
    floor = np.where([not k.signed for k in kinds if isinstance(k, Linear)], tiny, 0.0)
    return (
        np.maximum(parts, floor) / norm if not signed else np.where(floor > 0, np.maximum(parts, floor), parts) / norm
    )
