"""The last digits of a fit: Newton steps on the gradient, from where a descent on the objective has come to rest.

An objective tells its minimum to half of its digits only, so where a descent rests depends on the processor's rounding;
where the gradient is zero does not. It refuses to move what does not come nearer to that.

Where a fit starts: variable projection over a grid of shapes, non-negative linear parts solved exactly.

For given exponents a law is linear in the rest, so nothing is guessed and nothing is random: the same table gives the
same starts. Prior art: variable projection for scaling laws (Open-Athena's VPNLS). It refuses to choose a winner.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.law import Array, Law, Linear, Shape
from kleiber.studies.laws.solve import BATCH, Problem, influence, rho, to_space

STEPS = 4
APART = 1e-6  # of residuals, by which gradients are differenced: below any Huber delta in use
FARTHEST = 1e-3  # in a coordinate, for directions that move no residual


@np.errstate(all="ignore")  # a step that is not finite is not taken
def finish(
    problem: Problem, theta: Array, targets: Array | None = None, weights: Array | None = None, fixed: int | None = None
) -> tuple[Array, Array]:
    """Every row of `theta` moved to where the gradient of its objective is zero, and the objectives there; arguments as
    for `solve.descend`.

    Absolute residuals have corners instead, and are left as they are.
    """
    shape = (len(theta), problem.num_rows)
    observed = np.broadcast_to(problem.observed[None] if targets is None else targets, shape)
    weights = np.broadcast_to(np.ones((1, 1)) if weights is None else weights, shape)
    free = [j for j in range(theta.shape[1]) if j != fixed and problem.loss_fn != "lad"]
    chunk = max(1, BATCH // (problem.num_rows * 2 * max(len(free), 1)))
    parts = [slice(i, i + chunk) for i in range(0, len(theta), chunk)]
    theta = np.concatenate([_finish(problem, theta[p], observed[p], weights[p], free) for p in parts])
    return theta, (weights * rho(problem.predict(theta) - observed, problem.loss_fn, problem.delta)).sum(1)


def _finish(problem: Problem, theta: Array, observed: Array, weights: Array, free: list[int]) -> Array:
    theta = theta.copy()
    for _ in range(STEPS if free else 0):
        basis = _basis(problem, theta, observed, weights, free)
        around = np.stack([theta + s * basis[:, :, k] for k in range(len(free)) for s in (1, -1)], 1)
        slopes = _slopes(problem, around, observed, weights, basis, partial(problem.jacobian, apart=2e-4))
        curvature = (slopes[:, ::2] - slopes[:, 1::2]) / 2
        curvature = (curvature + curvature.transpose(0, 2, 1)) / 2
        usable = np.isfinite(curvature).all((1, 2)) & (np.linalg.cond(np.nan_to_num(curvature)) < 1e12)
        curvature[~usable] = np.eye(len(free))
        here = _slopes(problem, theta[:, None], observed, weights, basis, problem.exact_jacobian)[:, 0]
        trial = theta - np.einsum("bpq,bq->bp", basis, np.linalg.solve(curvature, here[:, :, None])[:, :, 0])
        after = _slopes(problem, trial[:, None], observed, weights, basis, problem.exact_jacobian)[:, 0]
        better = usable & (np.linalg.norm(after, axis=1) < np.linalg.norm(here, axis=1))
        theta[better] = trial[better]
    return theta


def _slopes(
    problem: Problem, around: Array, observed: Array, weights: Array, basis: Array, rule: Callable[[Array], Array]
) -> Array:
    """Gradients of the objectives at (problems, points, params) along the directions of a basis; `rule` is how to
    difference the predictions."""
    draws, points, params = around.shape
    flat = around.reshape(-1, params)
    r = problem.predict(flat).reshape(draws, points, -1) - observed[:, None]
    pull = 2 * r if problem.loss_fn == "squared" else np.clip(r, -problem.delta, problem.delta)
    jacobian = rule(flat).reshape(draws, points, problem.num_rows, params)
    return np.einsum("bkr,bkrp,bpq->bkq", pull * weights[:, None], jacobian, basis, optimize=True)


def _basis(problem: Problem, theta: Array, observed: Array, weights: Array, free: list[int]) -> Array:
    """Directions (problems, params, free) in which residuals move by `APART`, so that all curvatures are alike."""
    r = problem.predict(theta) - observed
    weight = np.sqrt(weights * influence(r, problem.loss_fn, problem.delta))[:, :, None]
    jacobian = np.nan_to_num(weight * problem.jacobian(theta)[:, :, free], nan=0.0, posinf=0.0, neginf=0.0)
    _, s, vt = np.linalg.svd(jacobian, full_matrices=False)
    apart = np.minimum(APART / np.maximum(s, 1e-300), FARTHEST)
    basis = np.zeros((*theta.shape, vt.shape[1]))
    basis[:, free] = vt.transpose(0, 2, 1) * apart[:, None]
    return basis


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
