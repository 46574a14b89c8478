"""The last digits of a fit: Newton steps on the gradient, from where a descent on the objective has come to rest.

An objective tells its minimum to half of its digits only, so where a descent rests depends on the processor's rounding;
where the gradient is zero does not. It refuses to move what does not come nearer to that.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from kleiber.studies.law import Array
from kleiber.studies.solve import BATCH, Problem, influence, rho

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
