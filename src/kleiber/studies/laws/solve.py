"""Many least-loss problems at once: Huber, absolute or squared residuals of one law, one row of parameters per problem.

A bootstrap, a profile and a multi-start are the same computation, a batch of refits that differ in weights, targets or
starts, so the solver is one Levenberg-Marquardt over arrays (problems, rows, params), reweighted for the Huber loss.
It knows laws only as functions and refuses to choose starts, to judge and to draw random numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from kleiber.studies.laws.law import Array, Law

EIGHTH = {2e-3: 8 / 5, 4e-3: -4 / 5, 6e-3: 8 / 35, 8e-3: -1 / 35}  # weights of central differences by distance
LOSSES = ("huber", "lad", "squared")
SPACES = ("log", "linear", "log10")
BATCH = 100_000  # elements (problems x rows) evaluated together: fits the caches
TOGETHER = 20_000  # elements below which all coordinates of a Jacobian go in one call


@dataclass(frozen=True)
class Problem:
    """One law, its rows and the objective sum_i rho(s(L_hat_i) - s(L_i)), s the `space`, rho the `loss_fn`.

    `active` marks the parameters that are in the law; a dropped term is held at 0. `scale` (rows,), where standard
    errors are known, divides both predictions and observations, and so the residuals (`relative_sigma`).
    """

    law: Law
    inputs: Mapping[str, Array]
    target: Array
    loss_fn: str
    delta: float
    space: str
    active: NDArray[np.bool_] = field(repr=False)
    scale: Array | None = field(default=None, repr=False)

    @property
    def num_rows(self) -> int:
        return len(self.target)

    @property
    def num_params(self) -> int:
        return int(self.active.sum())

    @property
    def observed(self) -> Array:
        """The target on the scale of the residuals."""
        return self.scaled(to_space(self.target, self.space))

    def scaled(self, values: Array) -> Array:
        """Values by row (..., rows) over the row's scale."""
        return values if self.scale is None else values / self.scale

    def rows(self, keep: NDArray) -> "Problem":
        """The same problem on some of its rows (a mask or positions)."""
        return replace(
            self,
            inputs={k: v[keep] for k, v in self.inputs.items()},
            target=self.target[keep],
            scale=None if self.scale is None else self.scale[keep],
        )

    def values(self, theta: Array) -> Array:
        """Natural parameters (draws, all params) of solver coordinates (draws, active params)."""
        full = np.zeros((len(theta), len(self.active)))
        log = self.law.log[self.active]
        full[:, self.active] = np.where(log, np.exp(np.clip(np.where(log, theta, 0.0), -700, 700)), theta)
        return full

    def coordinates(self, values: Array) -> Array:
        """The inverse of `values`."""
        kept = np.atleast_2d(values)[:, self.active]
        log = self.law.log[self.active]
        return np.where(log, np.log(np.where(log, np.maximum(kept, 1e-300), 1.0)), kept)

    def predict(self, theta: Array, inputs: Mapping[str, Array] | None = None) -> Array:
        """Predictions on the scale of the residuals, (draws, rows); at other `inputs` than its own rows unscaled."""
        answer = self.law.evaluate(self.inputs if inputs is None else inputs, self.values(theta))
        answer = convert(answer, self.law.returns, self.space)
        return self.scaled(answer) if inputs is None else answer

    @np.errstate(all="ignore")  # a wild trial step is rejected by its infinite objective
    def jacobian(self, theta: Array, inputs: Mapping[str, Array] | None = None, apart: float = 6e-6) -> Array:
        """d prediction / d coordinate by central differences over `apart`, (draws, rows, active params)."""
        draws, params = theta.shape
        steps = np.eye(params)[:, None, :] * (apart * np.maximum(1.0, np.abs(theta)))[None]
        together = params if draws * self.num_rows * params <= TOGETHER else 1
        parts = []
        for j in range(0, params, together):
            step = steps[j : j + together]
            both = np.concatenate([theta + step, theta - step]).reshape(-1, params)
            ahead, behind = self.predict(both, inputs).reshape(2, len(step), draws, -1)
            parts.append((ahead - behind) / (2 * step.sum(2)[:, :, None]))
        return np.moveaxis(np.concatenate(parts), 0, 2)

    def exact_jacobian(self, theta: Array) -> Array:
        """The same to eighth order, over distances at which rounding is 300 times less, for four times the price."""
        return np.sum([share * self.jacobian(theta, apart=apart) for apart, share in EIGHTH.items()], axis=0)


def to_space(loss: Array, space: str) -> Array:
    """The scale the residuals live on: log L, log10 L or L."""
    with np.errstate(all="ignore"):
        return {"log": np.log, "log10": np.log10, "linear": np.asarray}[space](loss)


def from_space(values: Array, space: str) -> Array:
    """The inverse of `to_space`."""
    return {"log": np.exp, "log10": lambda a: 10.0**a, "linear": np.asarray}[space](values)


def relative_sigma(sigma: Array, target: Array, space: str) -> Array:
    """Standard errors of the target on the scale of the residuals, over their root mean square.

    sigma / L in log space. Divided by the root mean square, residuals stay as large as they were, so that a Huber delta
    keeps its meaning and equal errors change nothing.
    """
    error = {"log": sigma / target, "log10": sigma / (target * np.log(10.0)), "linear": sigma}[space]
    return error / np.sqrt(np.mean(error**2))


def convert(answer: Array, returns: str, space: str) -> Array:
    """A law's answer, from the scale it returns to the scale of the residuals."""
    if returns == space:
        return answer
    if returns == "log10" and space == "log":
        return answer * np.log(10.0)
    return to_space(10.0**answer if returns == "log10" else answer, space)


def rho(r: Array, loss_fn: str, delta: float) -> Array:
    """Huber r^2/2 within delta and delta (|r| - delta/2) beyond; lad |r|; squared r^2. Not finite reads as inf."""
    size = np.abs(r)
    with np.errstate(all="ignore"):
        if loss_fn == "squared":
            out = size**2
        elif loss_fn == "lad":
            out = size
        else:
            out = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    return np.where(np.isfinite(out), out, np.inf)


def influence(r: Array, loss_fn: str, delta: float) -> Array:
    """Weights rho'(r)/r up to a factor: those of the quadratic that touches rho from above at r."""
    if loss_fn == "squared":
        return np.ones_like(r)
    return 1 / np.maximum(1.0, np.abs(r) / delta)


def smooth(problem: Problem, r: Array) -> tuple[str, float]:
    """The differentiable loss used in place of lad: Huber with a delta of 1 % of the median residual."""
    if problem.loss_fn != "lad":
        return problem.loss_fn, problem.delta
    return "huber", 1e-2 * max(float(np.median(np.abs(r[np.isfinite(r)]))), 1e-9)


@np.errstate(all="ignore")  # a wild trial step is rejected by its infinite objective
def descend(
    problem: Problem, theta: Array, targets: Array | None = None, weights: Array | None = None,
    fixed: int | None = None, rounds: int = 60, tolerance: float = 1e-8,
) -> tuple[Array, Array]:  # fmt: skip
    """Levenberg-Marquardt from every row of `theta`: the refitted rows and their objective values.

    `targets` (problems, rows) on the residual scale and `weights` (problems, rows) tell the problems apart; coordinate
    `fixed` stays. Large batches are cut into chunks, which changes nothing but memory.
    """
    chunk = max(1, BATCH // problem.num_rows)
    if len(theta) <= chunk:
        return _descend(problem, theta, targets, weights, fixed, rounds, tolerance)
    parts = [slice(i, i + chunk) for i in range(0, len(theta), chunk)]
    done = [
        _descend(
            problem, theta[p], None if targets is None else targets[p], None if weights is None else weights[p],
            fixed, rounds, tolerance,
        )
        for p in parts
    ]  # fmt: skip
    return np.concatenate([t for t, _ in done]), np.concatenate([v for _, v in done])


def _descend(problem, theta, targets, weights, fixed, rounds, tolerance) -> tuple[Array, Array]:
    theta = theta.copy()
    observed = problem.observed[None] if targets is None else targets
    weights = np.ones((1, problem.num_rows)) if weights is None else weights
    observed, weights = (np.broadcast_to(a, (len(theta), problem.num_rows)) for a in (observed, weights))
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
    """One damped Gauss-Newton step per problem; steps in log coordinates are capped at a factor e^3."""
    jacobian = np.nan_to_num(problem.jacobian(theta)[:, :, free], nan=0.0, posinf=0.0, neginf=0.0)
    weighted = jacobian * (weights * influence(r, loss_fn, delta))[:, :, None]
    normal = np.matmul(weighted.transpose(0, 2, 1), jacobian)
    slope = np.einsum("brp,br->bp", weighted, r)
    diagonal = np.maximum(np.einsum("bpp->bp", normal), 1e-30)
    scale = 1 / np.sqrt(diagonal)  # unit diagonal: log A and alpha differ by orders of magnitude
    normal = normal * scale[:, :, None] * scale[:, None, :]
    normal[:, range(len(free)), range(len(free))] += damping[:, None] + 1e-13
    step = np.zeros_like(theta)
    step[:, free] = -scale * np.linalg.solve(normal, (scale * slope)[:, :, None])[:, :, 0]
    return np.clip(step, -3.0, 3.0)


@np.errstate(all="ignore")  # a wild trial step is rejected by its infinite objective
def polish(problem: Problem, theta: Array) -> tuple[Array, float]:
    """BFGS on whitened coordinates from one row `theta`, to ten digits; lad by Huber with delta falling to 1e-7.

    The objective is divided by its value at the start: raw values of 1e-3 meet default tolerances too early.
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

        def cost(z, theta=theta, whiten=whiten, loss_fn=loss_fn, delta=delta, size=size):
            at = (theta + whiten @ z)[None]
            r = problem.predict(at)[0] - observed
            pull = 2 * r if loss_fn == "squared" else np.clip(r, -delta, delta)
            slope = np.nan_to_num(pull @ problem.jacobian(at)[0]) @ whiten
            value = float(rho(r, loss_fn, delta).sum())
            return (value if np.isfinite(value) else 1e300) / size, slope / size

        found = minimize(cost, np.zeros(len(theta)), jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 400})
        theta = theta + whiten @ found.x
    values = [
        float(rho(problem.predict(t[None])[0] - observed, problem.loss_fn, problem.delta).sum()) for t in (start, theta)
    ]
    return (start, values[0]) if values[0] <= values[1] or not np.isfinite(values[1]) else (theta, values[1])


def _whitening(jacobian: Array) -> Array:
    """A basis in which the weighted residuals' curvature is the identity (small directions held to 1e-7)."""
    _, s, vt = np.linalg.svd(np.nan_to_num(jacobian), full_matrices=False)
    return vt.T / np.maximum(s, 1e-7 * max(float(s[0]), 1e-300))
