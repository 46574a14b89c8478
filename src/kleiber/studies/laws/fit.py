"""Fits a law: a grid of starting points, many descents at once, a quasi-Newton polish, and Newton steps.

If its shape parameters (such as exponents) are fixed, a law is linear in the others. Each grid point fixes the shapes
and solves for the linear parameters exactly (variable projection). The fit is deterministic: the same table gives the
same result. Its uncertainty is computed by `uncertainty`, `backtest` and `verdicts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.law import Array, Law, Linear, Shape
from kleiber.studies.laws.problem import Problem, checked_problem, influence, rho, scale_of, to_space
from kleiber.studies.laws.solve import descend, finish, polish
from kleiber.studies.laws.table import Table

UNDETERMINED = 1e-7  # directions whose singular value is below this fraction of the largest change no residual
NO_CHANGE = 3e-8  # directions whose singular value is below this fraction of the largest have no variance
STEP = 1e-4  # step along such a direction, in its largest coordinate
CHANGED = 1e-10  # relative change of a quantity over such a step; rounding is below 1e-12, a change above 1e-8
NEGLIGIBLE = 1e-6  # a term below this fraction of every prediction is dropped


@dataclass(frozen=True)
class Fit:
    """A fitted law: its problem, and its parameters `theta` in solver coordinates (logs if positive)."""

    problem: Problem
    theta: Array

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def values(self) -> Array:
        """Parameters in their natural units, (1, params); 0 for a dropped term."""
        return self.problem.values(self.theta[None])

    @property
    def params(self) -> dict[str, float]:
        """Parameters in their natural units, by name."""
        return dict(zip(self.law.params, self.values[0].tolist(), strict=True))

    @property
    def residuals(self) -> Array:
        """Residuals s(L_hat) - s(L) of all rows, on the scale s of `Problem.space`."""
        return self.problem.predict(self.theta[None])[0] - self.problem.observed

    @property
    def value(self) -> float:
        """The objective, summed over the rows."""
        return float(rho(self.residuals, self.problem.loss_fn, self.problem.delta).sum())

    @property
    def noise(self) -> float:
        """Residual standard deviation sqrt(RSS / (n - p)); nan if n <= p."""
        spare = self.problem.num_rows - self.problem.num_params
        return float(np.sqrt((self.residuals**2).sum() / spare)) if spare > 0 else float("nan")

    @property
    def kept(self) -> list[str]:
        """Names of the fitted parameters, in the order of `theta`."""
        return [name for name, on in zip(self.law.params, self.problem.active, strict=True) if on]

    @property
    def dropped(self) -> list[str]:
        """Names of the linear terms that were fitted to 0 and dropped."""
        return [name for name, on in zip(self.law.params, self.problem.active, strict=True) if not on]

    @property
    def jacobian(self) -> Array:
        """Derivative of the predictions with respect to `theta`, (rows, params); 0 where it is not finite."""
        return np.nan_to_num(self.problem.jacobian(self.theta[None])[0])

    def covariance(self) -> tuple[Array, float]:
        """Returns the covariance s^2 (J'J)^-1 of `theta` (delta method), and the condition number of J'J."""
        jacobian = self.problem.exact_jacobian(self.theta[None])[0]
        centred = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
        condition = float(np.linalg.cond(centred.T @ centred))
        spread = self.noise if np.isfinite(self.noise) else 0.0
        inverse = np.linalg.pinv(jacobian, rcond=NO_CHANGE)  # whose product has no negative variance; pinv(J'J) has
        return spread**2 * (inverse @ inverse.T), condition

    def undetermined(self) -> Array:
        """Returns parameters a small step from the fit, in both senses of each direction that changes no residual.

        Shape (2 directions, params), in pairs. Example: alpha vs A and E if all rows have the same size. A bootstrap
        does not reveal such directions, since its refits start at the fit and do not move along them; `depends` tests
        for them.
        """
        jacobian = self.jacobian
        size = np.linalg.norm(jacobian, axis=0)
        unit = 1 / np.where(size > 1e-9 * size.max(initial=0.0), size, 1.0)
        _, moved, ways = np.linalg.svd(jacobian * unit, full_matrices=True)
        rank = int((moved > UNDETERMINED * moved.max(initial=1e-300)).sum())
        ways = ways[rank:] * unit
        steps = STEP * ways / np.abs(ways).max(1, keepdims=True)
        return self.problem.values(np.stack([self.theta + steps, self.theta - steps], 1).reshape(-1, len(self.theta)))

    def on_rows(self, table: Table) -> "Fit":
        """Returns the same parameters with the rows of a table, as before they were averaged or pooled."""
        scale = scale_of(table, self.problem.space)
        return Fit(self.problem.on(table.inputs(self.law), table.target, scale), self.theta)

    def predict(self, inputs: Mapping[str, Array]) -> Array:
        """Predicts the target in its own units at new inputs, (rows,)."""
        return self.law.predict(inputs, self.values)[0]


def depends(ends: Array) -> bool:
    """Returns whether a quantity, evaluated at the pairs of points of `Fit.undetermined`, differs within any pair."""
    ahead, behind = ends[0::2], ends[1::2]
    return bool((np.abs(ahead - behind) > CHANGED * np.maximum(np.abs(ahead), np.abs(behind))).any())


def fit(
    law: Law | str, inputs: Mapping[str, Array], target: Array, loss_fn: str | None = None,
    delta: float = 1e-3, space: str | None = None, scale: Array | None = None,
) -> Fit:  # fmt: skip
    """Fits a law by minimizing sum_i rho(s(L_hat_i) - s(L_i)) over its parameters.

    By default, the loss function rho (`loss_fn`) and the scale s (`space`) are those of the law's publication. `scale`
    (rows,) divides the residuals if the rows have standard errors (`problem.relative_sigma`). If a linear term is
    fitted to 0, it is dropped (`Fit.dropped`) and the law is fitted without it. Raises ValueError for a missing input,
    for fewer rows than parameters, and for values that are not positive on a log scale.
    """
    law = find(law) if isinstance(law, str) else law
    problem = checked_problem(law, inputs, target, loss_fn, delta, space, scale)
    seed = fit(law.start, inputs, target, loss_fn, delta, space, scale).params if law.start else {}
    for _ in range(1 + len(law.linear)):
        starts = candidates(problem, seed)
        theta, value = descend(problem, starts, rounds=60, tolerance=1e-8)
        if not np.isfinite(value).any():
            raise ValueError(
                f"law {law.name!r} could not be fitted: it is not finite on these {problem.num_rows} rows at any "
                "starting point; check the columns of --map"
            )
        (best,), _ = descend(problem, theta[[np.argmin(value)]], rounds=5000, tolerance=1e-12)
        (best,), _ = finish(problem, polish(problem, best)[None])
        weak = _negligible(problem, best)
        if weak is None:
            return Fit(problem, best)
        active = problem.active.copy()
        active[weak] = False
        problem = replace(problem, active=active)
    raise ValueError(f"law {law.name!r}: all linear terms are fitted to 0; check the sign and scale of the target L")


def refine(problem: Problem, theta: Array) -> Fit:
    """Descends from one solution `theta` (params,) that is close to the minimum of another problem."""
    (theta,), _ = descend(problem, theta[None])
    return Fit(problem, theta)


def refit(fitted: Fit, keep: NDArray) -> Fit:
    """Fits the same law with the same objective to some of the rows (a mask or positions)."""
    part = fitted.problem.rows(keep)
    return fit(fitted.law, part.inputs, part.target, part.loss_fn, part.delta, part.space, part.scale)


def _negligible(problem: Problem, theta: Array) -> int | None:
    """Returns the position of the smallest non-negative linear term if it is below `NEGLIGIBLE`, or None."""
    law, values = problem.law, problem.values(theta[None])
    kinds = list(law.params.values())
    watch = [k for k, j in enumerate(law.linear) if problem.active[j] and kinds[j].log]
    if law.returns == "log10" or not watch:
        return None
    terms = np.abs(columns_of(problem, values)[0] * values[0, law.linear])
    share = (terms / np.maximum(np.abs(law.evaluate(problem.inputs, values)[0]), 1e-300)[:, None]).max(0)
    weakest = min(watch, key=lambda k: share[k])
    return law.linear[weakest] if share[weakest] < NEGLIGIBLE else None


def candidates(problem: Problem, seed: Mapping[str, float], keep: int = 12) -> Array:
    """Returns the `keep` best starting points for `descend`, from a grid of shapes with solved linear parameters.

    seed  parameters of a simpler law, fitted before
    """
    shapes = shape_grid(problem, seed)
    values = np.zeros((len(shapes), len(problem.law.params)))
    values[:, problem.law.shapes] = shapes
    if problem.law.linear:
        values[:, problem.law.linear] = solve_linear(problem, values)
    score = rho(problem.predict(problem.coordinates(values)) - problem.observed, problem.loss_fn, problem.delta).sum(1)
    return problem.coordinates(values[np.argsort(score, kind="stable")[:keep]])


def shape_grid(problem: Problem, seed: Mapping[str, float]) -> Array:
    """Returns shape parameters to start from: a grid of 12 values per axis, or 1024 quasi-random points above two axes.

    Shapes in `seed` have the value of `seed`; in half of the points it is multiplied by up to e^(1/2).
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
    """Returns quasi-random points in the unit cube: the additive recurrence of the generalized golden ratio."""
    ratio = 2.0
    for _ in range(30):
        ratio = (1 + ratio) ** (1 / (dims + 1))
    return (0.5 + np.arange(1, count + 1)[:, None] * ratio ** -np.arange(1.0, dims + 1)) % 1


def solve_linear(problem: Problem, values: Array, rounds: int = 4) -> Array:
    """Solves for the linear parameters at the shapes in each row of `values`, (draws, parts).

    Uses reweighted least squares with non-negative parameters unless signed. For residuals on a log scale, the residual
    is approximated by prediction / L - 1, which is close enough for a starting point.
    """
    law = problem.law
    columns = columns_of(problem, values)
    scale = "log10" if law.returns == "log10" else "linear"
    observed = to_space(problem.target, scale)
    weight = problem.scaled(1 / observed if problem.space != "linear" and scale == "linear" else np.ones_like(observed))
    offset = law.evaluate(problem.inputs, without_linear(law, values))
    design, goal = columns * weight[None, :, None], (observed - offset) * weight
    pull = np.ones_like(goal)
    parts = np.zeros((len(values), len(law.linear)))
    for _ in range(rounds if problem.loss_fn != "squared" else 1):
        parts = _nonnegative(design, goal, pull, law, problem.active)
        r = np.einsum("brk,bk->br", design, parts) - goal
        pull = influence(r, "huber", problem.delta if problem.loss_fn == "huber" else 1e-3)
    return parts


def without_linear(law: Law, values: Array) -> Array:
    """Returns the parameters (draws, params) with the linear ones set to 0."""
    bare = values.copy()
    bare[:, law.linear] = 0.0
    return bare


def columns_of(problem: Problem, values: Array) -> Array:
    """Returns the law's linear terms with their parameters set to 1, (draws, rows, parts)."""
    law = problem.law
    bare = without_linear(law, values)
    base = law.evaluate(problem.inputs, bare)
    columns = []
    for j in law.linear:
        unit = bare.copy()
        unit[:, j] = 1.0
        columns.append(law.evaluate(problem.inputs, unit) - base)
    return np.nan_to_num(np.stack(columns, axis=2), nan=0.0, posinf=0.0, neginf=0.0)


@np.errstate(over="ignore")  # a term that overflows gets no weight
def _nonnegative(design: Array, goal: Array, pull: Array, law: Law, active: NDArray) -> Array:
    """Weighted least squares with unsigned parameters >= 0: tries every subset of them, at most five."""
    kinds = [kind for kind in law.params.values() if isinstance(kind, Linear)]
    on = [bool(active[j]) for j in law.linear]
    signed = [k for k, kind in enumerate(kinds) if kind.signed and on[k]]
    others = [k for k, kind in enumerate(kinds) if not kind.signed and on[k]]
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
    floor = np.where([not kind.signed for kind in kinds], tiny, 0.0)
    return np.where(floor > 0, np.maximum(parts, floor), parts) / norm
