"""Minimizes the objectives of many problems at once; each has its own weights, targets or starting point.

Bootstraps, profiles and fits from several starting points all use such batches. `descend` is a Levenberg-Marquardt
method on arrays (problems, rows, params), reweighted for the Huber loss. `polish` refines one solution to ten digits.
`finish` takes Newton steps until the gradient is zero: near a minimum, the objective is so flat that rounding decides
where a descent stops, but the zero of the gradient is well defined.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.optimize import minimize

from kleiber.studies.laws.law import Array
from kleiber.studies.laws.problem import Problem, clip, influence, rho, zero_where_not_finite

BATCH = 100_000  # elements (problems x rows) of a chunk
STEPS = 4  # Newton steps of `finish`
APART = 1e-6  # change of the residuals between the two gradients of a difference quotient, below any Huber delta
FARTHEST = 1e-3  # largest step in a coordinate, for directions that change no residual


def smooth(problem: Problem, r: Array) -> tuple[str, float]:
    """Returns loss function and delta to descend on; lad is replaced by Huber with 1 % of the median residual."""
    if problem.loss_fn != "lad":
        return problem.loss_fn, problem.delta
    return "huber", 1e-2 * max(float(np.median(np.abs(r[np.isfinite(r)]))), 1e-9)


@np.errstate(all="ignore")  # a wild trial step is rejected by its infinite objective
def descend(
    problem: Problem, theta: Array, targets: Array | None = None, weights: Array | None = None,
    fixed: int | None = None, rounds: int = 300, tolerance: float = 1e-9,
) -> tuple[Array, Array]:  # fmt: skip
    """Levenberg-Marquardt from every row of `theta`; returns the solutions and their objectives.

    A problem ends with its second round in a row whose relative gain is below `tolerance`, or after `rounds`. The
    defaults are for results: where a linear term tends to 0 the valley is long and curved, and after 60 rounds a tenth
    to three quarters of the refits of a table are not at its end, so their intervals are too narrow. Fewer rounds
    suffice to compare starting points.

    `targets` and `weights` (problems, rows) on the scale of the residuals replace those of the problem. Coordinate
    `fixed` keeps its value. Large batches are computed in chunks to limit memory.
    """
    observed, weights = _of_problems(problem, len(theta), targets, weights)
    parts = [
        _descend(problem, theta[chunk], observed[chunk], weights[chunk], fixed, rounds, tolerance)
        for chunk in _chunks(len(theta), problem.num_rows)
    ]
    return np.concatenate([solutions for solutions, _ in parts]), np.concatenate([values for _, values in parts])


def _of_problems(
    problem: Problem, count: int, targets: Array | None, weights: Array | None
) -> tuple[Array, Array]:  # fmt: skip
    """Returns targets and weights of `count` problems, (problems, rows) each; None stands for those of the problem."""
    shape = (count, problem.num_rows)
    observed = np.broadcast_to(problem.observed if targets is None else targets, shape)
    return observed, np.broadcast_to(1.0 if weights is None else weights, shape)


def _chunks(count: int, elements: int) -> list[slice]:
    """Returns slices of `count` problems of that many elements, few enough for the processor's cache."""
    size = max(1, BATCH // elements)
    return [slice(i, i + size) for i in range(0, count, size)]


def _descend(
    problem: Problem, theta: Array, observed: Array, weights: Array, fixed: int | None, rounds: int, tolerance: float
) -> tuple[Array, Array]:
    theta = theta.copy()
    r = problem.predict(theta) - observed
    loss_fn, delta = smooth(problem, r)
    value = (weights * rho(r, loss_fn, delta)).sum(1)
    damping, calm = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
    free = np.array([j for j in range(theta.shape[1]) if j != fixed], dtype=int)
    for _ in range(rounds):
        live = np.flatnonzero((calm < 2) & np.isfinite(value) & (damping < 1e12))
        if not live.size or not free.size:
            break
        step = _step(problem, theta[live], r[live], weights[live], damping[live], free, loss_fn, delta)
        trial = theta[live] + step
        r_trial = problem.predict(trial) - observed[live]
        v_trial = (weights[live] * rho(r_trial, loss_fn, delta)).sum(1)
        better = v_trial < value[live]
        gain = (value[live] - v_trial) / np.maximum(value[live], 1e-300)
        calm[live] = np.where(better & (gain > tolerance), 0, calm[live] + (better | (damping[live] > 1e6)))
        damping[live] = np.where(better, np.maximum(damping[live] / 5, 1e-12), damping[live] * 6)
        won = live[better]
        theta[won], r[won], value[won] = trial[better], r_trial[better], v_trial[better]
    return theta, (weights * rho(r, problem.loss_fn, problem.delta)).sum(1)


def _step(problem, theta, r, weights, damping, free, loss_fn, delta) -> Array:
    """Returns one damped Gauss-Newton step for each problem; steps in a log coordinate are at most a factor of e^3."""
    jacobian = zero_where_not_finite(problem.jacobian(theta)[:, :, free])
    weighted = jacobian * (weights * influence(r, loss_fn, delta))[:, :, None]
    normal = np.matmul(weighted.transpose(0, 2, 1), jacobian)
    slope = np.einsum("brp,br->bp", weighted, r)
    diagonal = np.maximum(np.einsum("bpp->bp", normal), 1e-30)
    scale = 1 / np.sqrt(diagonal)  # unit diagonal: log A and alpha differ by orders of magnitude
    normal = normal * scale[:, :, None] * scale[:, None, :]
    normal[:, range(len(free)), range(len(free))] += damping[:, None] + 1e-13
    step = np.zeros_like(theta)
    step[:, free] = -scale * np.linalg.solve(normal, (scale * slope)[:, :, None])[:, :, 0]
    return clip(step, -3.0, 3.0)


@np.errstate(all="ignore")  # a wild trial step is rejected by its infinite objective
def polish(problem: Problem, theta: Array) -> Array:
    """Refines a solution `theta` (params,) to ten digits by BFGS in whitened coordinates.

    lad is approximated by Huber with delta down to 1e-7. The objective is divided by its initial value, since the
    default tolerances are too loose for values near 1e-3.
    """
    deltas = {"lad": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), "huber": (problem.delta,), "squared": (1.0,)}[problem.loss_fn]
    observed = problem.observed
    start = theta.copy()
    for delta in deltas:
        loss_fn = "squared" if problem.loss_fn == "squared" else "huber"
        jacobian = problem.jacobian(theta[None])[0]
        w = np.sqrt(influence(problem.predict(theta[None])[0] - observed, loss_fn, delta))[:, None]
        whiten = _whitening(w * jacobian)
        size = float(rho(problem.predict(theta[None])[0] - observed, loss_fn, delta).sum()) or 1.0
        around = (problem, observed, theta, whiten, loss_fn, delta, size)
        options = {"gtol": 1e-8, "maxiter": 400}
        result = minimize(_whitened_objective, np.zeros(len(theta)), around, jac=True, method="BFGS", options=options)
        theta = theta + whiten @ result.x
    residuals = problem.predict(np.stack([start, theta])) - observed
    before, after = rho(residuals, problem.loss_fn, problem.delta).sum(1)
    return theta if after < before else start


def _whitened_objective(
    z: Array, problem: Problem, observed: Array, theta: Array, whiten: Array, loss_fn: str, delta: float, size: float
) -> tuple[float, Array]:
    """The objective at theta + whiten z and its gradient with respect to z, both divided by `size`."""
    at = (theta + whiten @ z)[None]
    r = problem.predict(at)[0] - observed
    pull = 2 * r if loss_fn == "squared" else clip(r, -delta, delta)
    slope = np.nan_to_num(pull @ problem.jacobian(at)[0]) @ whiten
    value = float(rho(r, loss_fn, delta).sum())
    return (value if np.isfinite(value) else 1e300) / size, slope / size


def _whitening(jacobian: Array) -> Array:
    """Returns a basis in which the curvature of the weighted squared residuals is the identity.

    Singular values below 1e-7 of the largest are raised to it.
    """
    _, s, vt = np.linalg.svd(np.nan_to_num(jacobian), full_matrices=False)
    return vt.T / np.maximum(s, 1e-7 * max(float(s[0]), 1e-300))


@np.errstate(all="ignore")  # a step that is not finite is not taken
def finish(
    problem: Problem, theta: Array, targets: Array | None = None, weights: Array | None = None, fixed: int | None = None
) -> tuple[Array, Array]:
    """Takes Newton steps from every row of `theta` to a zero gradient; returns the solutions and their objectives.

    The arguments are those of `descend`. With lad, whose gradient jumps, the rows are returned unchanged.
    """
    observed, weights = _of_problems(problem, len(theta), targets, weights)
    free = [j for j in range(theta.shape[1]) if j != fixed and problem.loss_fn != "lad"]
    chunks = _chunks(len(theta), problem.num_rows * 2 * max(len(free), 1))
    theta = np.concatenate([_finish(problem, theta[part], observed[part], weights[part], free) for part in chunks])
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
    """Returns the gradients of the objectives at `around` (problems, points, params) along the directions of a basis.

    rule  computes the Jacobian of the predictions
    """
    draws, points, params = around.shape
    flat = around.reshape(-1, params)
    r = problem.predict(flat).reshape(draws, points, -1) - observed[:, None]
    pull = 2 * r if problem.loss_fn == "squared" else clip(r, -problem.delta, problem.delta)
    jacobian = rule(flat).reshape(draws, points, problem.num_rows, params)
    return np.einsum("bkr,bkrp,bpq->bkq", pull * weights[:, None], jacobian, basis, optimize=True)


def _basis(problem: Problem, theta: Array, observed: Array, weights: Array, free: list[int]) -> Array:
    """Returns directions (problems, params, free) along which residuals change by `APART`: similar curvatures."""
    r = problem.predict(theta) - observed
    weight = np.sqrt(weights * influence(r, problem.loss_fn, problem.delta))[:, :, None]
    jacobian = zero_where_not_finite(weight * problem.jacobian(theta)[:, :, free])
    _, s, vt = np.linalg.svd(jacobian, full_matrices=False)
    apart = np.minimum(APART / np.maximum(s, 1e-300), FARTHEST)
    basis = np.zeros((*theta.shape, vt.shape[1]))
    basis[:, free] = vt.transpose(0, 2, 1) * apart[:, None]
    return basis
