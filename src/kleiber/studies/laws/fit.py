"""Fit a law: starts by variable projection, a batch of descents, one polish; the same table gives the same fit.

What the fit is worth is judged elsewhere (`bootstrap`, `profile`, `backtest`,
`verdicts`); this module refuses to print a parameter's uncertainty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.initial_guess import candidates, columns_of, finish
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.solve import LOSSES, SPACES, Problem, convert, descend, polish, rho

UNTOLD = 1e-7  # of the most that a direction moves residuals, below which it moves none
STEP = 1e-4  # in a coordinate, along directions that move no residual
NEGLIGIBLE = 1e-6  # a term below this share of every prediction is not in the data


@dataclass(frozen=True)
class Fit:
    """A fitted law: `theta` in solver coordinates, `value` the unscaled objective, residuals on the fit's scale."""

    problem: Problem
    theta: Array
    value: float

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def values(self) -> Array:
        """Natural parameters (1, params); a dropped term is 0."""
        return self.problem.values(self.theta[None])

    @property
    def params(self) -> dict[str, float]:
        return dict(zip(self.law.params, self.values[0].tolist(), strict=True))

    @property
    def residuals(self) -> Array:
        """s(L_hat) - s(L) by row, s the space of the fit."""
        return self.problem.predict(self.theta[None])[0] - self.problem.observed

    @property
    def noise(self) -> float:
        """Residual standard deviation sqrt(RSS/(n - p)) on the fit's scale; nan without degrees of freedom."""
        spare = self.problem.num_rows - self.problem.num_params
        return float(np.sqrt((self.residuals**2).sum() / spare)) if spare > 0 else float("nan")

    @property
    def dropped(self) -> list[str]:
        """Linear terms the data put at 0."""
        return [name for name, on in zip(self.law.params, self.problem.active, strict=True) if not on]

    def covariance(self) -> tuple[Array, float]:
        """Delta-method covariance s^2 (J'J)^-1 of the solver coordinates, and the condition number of J'J."""
        jacobian = self.problem.exact_jacobian(self.theta[None])[0]
        centred = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
        condition = float(np.linalg.cond(centred.T @ centred))
        spread = self.noise if np.isfinite(self.noise) else 0.0
        return spread**2 * np.linalg.pinv(jacobian.T @ jacobian), condition

    def untold(self) -> Array:
        """Natural parameters that the rows cannot tell from the fit, in pairs, a step to either side.

        Shape (2 x ways, params): a pair for each direction in which no residual moves, such as alpha against A and E at
        one size. Refits that begin at the fit do not walk there, so no spread of draws shows what depends on it
        (`depends`).
        """
        jacobian = np.nan_to_num(self.problem.jacobian(self.theta[None])[0])
        size = np.linalg.norm(jacobian, axis=0)
        unit = 1 / np.where(size > 1e-9 * size.max(initial=0.0), size, 1.0)
        _, moved, ways = np.linalg.svd(jacobian * unit, full_matrices=True)
        told = int((moved > UNTOLD * moved.max(initial=1e-300)).sum())
        ways = ways[told:] * unit
        steps = STEP * ways / np.abs(ways).max(1, keepdims=True)
        return self.problem.values(np.stack([self.theta + steps, self.theta - steps], 1).reshape(-1, len(self.theta)))

    def predict(self, inputs: Mapping[str, Array]) -> Array:
        """The target in its own units at new inputs, (rows,)."""
        return self.law.predict(inputs, self.values)[0]


def depends(ends: Array) -> bool:
    """Whether a quantity, told at the pairs of `Fit.untold`, depends on what the rows do not tell: by .1 % of STEP."""
    one, other = ends[0::2], ends[1::2]
    return bool((np.abs(one - other) > 1e-3 * STEP * np.maximum(np.abs(one), np.abs(other))).any())


def fit(
    law: Law | str, inputs: Mapping[str, Array], target: Array, loss_fn: str | None = None,
    delta: float = 1e-3, space: str | None = None, scale: Array | None = None,
) -> Fit:  # fmt: skip
    """Minimise sum_i rho(s(L_hat_i) - s(L_i)) over the law's parameters; `loss_fn` and `space` default to its source's.

    `scale` (rows,) divides the residuals, where the standard errors of the rows are known (`solve.relative_sigma`). A
    linear term that ends at 0 is dropped (`Fit.dropped`) and the rest refitted. Errors: ValueError for an input that
    the law needs and lacks, for fewer rows than parameters, and for values the space cannot take.
    """
    law = find(law) if isinstance(law, str) else law
    problem = pose(law, inputs, target, loss_fn, delta, space, scale)
    seed = fit(law.start, inputs, target, loss_fn, delta, space, scale).params if law.start else {}
    for _ in range(1 + len(law.linear)):
        starts = candidates(problem, seed)
        theta, value = descend(problem, starts)
        if not np.isfinite(value).any():
            raise ValueError(f"law {law.name!r} is not finite on these {problem.num_rows} rows from any start")
        rest, _ = polish(problem, theta[np.argmin(value)])
        (best,), (least,) = finish(problem, rest[None])
        weak = _negligible(problem, best)
        if weak is None:
            return Fit(problem, best, float(least))
        active = problem.active.copy()
        active[weak] = False
        problem = replace(problem, active=active)
    raise ValueError(f"law {law.name!r}: every linear term fits to 0; the target has the wrong sign or scale")


def objective_at(found: Fit, params: Mapping[str, float]) -> dict[str, Any]:
    """The objective of a fit's own rows at given values of all parameters: {params, value, residual_rms}.

    Errors: ValueError for a name that is no parameter of the law, for one that is missing, and where the law has no
    value there.
    """
    problem, law = found.problem, found.law
    names = [*law.params, *law.fixed]
    unknown = [name for name in params if name not in names]
    missing = [name for name in names if name not in params]
    if unknown:
        raise ValueError(
            f"--at {unknown[0]}={params[unknown[0]]:g}: the parameters of {law.name!r} are {', '.join(names)}"
        )
    if missing:
        raise ValueError(f"--at needs every parameter of {law.name!r}: {', '.join(missing)} missing")
    answer = law.call(problem.inputs, {name: np.array([[value]]) for name, value in params.items()})
    residuals = problem.scaled(convert(answer, law.returns, problem.space)) - problem.observed
    if not np.isfinite(residuals).all():
        raise ValueError(f"--at {dict(params)}: law {law.name!r} has no value on every row there")
    return {
        "params": dict(params),
        "value": float(rho(residuals, problem.loss_fn, problem.delta).sum()),
        "residual_rms": float(np.sqrt(np.mean(residuals**2))),
    }


def refit(found: Fit, keep: NDArray) -> Fit:
    """The same law and objective on some rows, from scratch."""
    part = found.problem.rows(keep)
    return fit(found.law, part.inputs, part.target, part.loss_fn, part.delta, part.space, part.scale)


def pose(
    law: Law, inputs: Mapping[str, Array], target: Array, loss_fn: str | None, delta: float, space: str | None,
    scale: Array | None = None,
) -> Problem:  # fmt: skip
    """The checked problem, everything float64 (6ND overflows int64 at real sizes)."""
    loss_fn, space = loss_fn or law.loss_fn, space or law.space
    if loss_fn not in LOSSES:
        raise ValueError(f"loss-fn {loss_fn!r}: one of {', '.join(LOSSES)}")
    if space not in SPACES:
        raise ValueError(f"space {space!r}: one of {', '.join(SPACES)}")
    if loss_fn == "huber" and not delta > 0:
        raise ValueError(f"delta {delta}: must be > 0; for the limit of 0 use loss-fn lad")
    missing = [name for name in law.inputs if name not in inputs]
    if missing:
        raise ValueError(f"law {law.name!r} needs inputs {', '.join(law.inputs)}; {', '.join(missing)} not given")
    columns = {name: np.asarray(inputs[name], dtype=np.float64) for name in inputs}
    target = np.asarray(target, dtype=np.float64)
    for name, column in {**columns, "target": target}.items():
        if not np.isfinite(column).all():
            raise ValueError(f"{name}: row {int(np.argmin(np.isfinite(column)))} is not finite; exclude it first")
    if space != "linear" and (target <= 0).any():
        raise ValueError(f"target {target.min():g} in space {space!r}: must be > 0; use space linear")
    if len(target) < len(law.params):
        raise ValueError(f"law {law.name!r} has {len(law.params)} parameters, the table {len(target)} rows")
    return Problem(law, columns, target, loss_fn, delta, space, np.ones(len(law.params), dtype=bool), scale)


def _negligible(problem: Problem, theta: Array) -> int | None:
    """Position of the weakest non-negative linear term when it is below `NEGLIGIBLE` of every prediction."""
    law, values = problem.law, problem.values(theta[None])
    names = list(law.params.values())
    watch = [k for k, j in enumerate(law.linear) if problem.active[j] and not getattr(names[j], "signed", True)]
    if law.returns == "log10" or not watch:
        return None
    terms = np.abs(columns_of(problem, values)[0] * values[0, law.linear])
    share = (terms / np.maximum(np.abs(law.evaluate(problem.inputs, values)[0]), 1e-300)[:, None]).max(0)
    weakest = min(watch, key=lambda k: share[k])
    return law.linear[weakest] if share[weakest] < NEGLIGIBLE else None
