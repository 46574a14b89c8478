"""Tests whether the residuals of a law contain a transient, by score tests with the noise of trunks and rows.

The noise that the branches of a trunk share depends on the model size only and so resembles a transient in N. Tests
along N therefore use the degrees of freedom of trunks, not of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from kleiber.studies.laws.fit import Fit, columns_of, refine
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.problem import from_space
from kleiber.studies.laws.variance_components import Layout, VarianceComponents, without_outliers

NULL_DRAWS = 4000  # simulated tables behind a p-value
FEWEST_TRUNKS = 3.0  # degrees of freedom between trunks below which nothing is tested along N


@dataclass(frozen=True)
class Diagnostics:
    """The least-squares fit of a table, the noise of its rows, and the weights that all tests use.

    tangent    gradient of the law in each row, including dropped terms, since E = 0 must not look like a transient
    precision  P = V^-1 - V^-1 J (J' V^-1 J)^-1 J' V^-1: inverse covariance without the directions that the law can fit
    """

    model: NoiseModel
    least: Fit
    noise: VarianceComponents
    tangent: Array
    precision: Array

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def residuals(self) -> Array:
        """Observed minus predicted, on the scale of the residuals."""
        return -self.least.residuals

    def score(self, directions: Array) -> tuple[Array, Array, Array]:
        """Returns coefficient, standard error and df of each added term of `directions` (terms, rows)."""
        weights = directions @ self.precision
        size = np.maximum((weights * directions).sum(1), 1e-300)
        variance, df = self.noise.variance(weights, self.layout)
        return weights @ self.residuals / size, np.sqrt(variance) / size, df

    def df_along(self, name: str, df: Array) -> Array:
        """Returns the degrees of freedom of a test along an input; at most those of trunks if trunks differ in it."""
        shared = self.model.clusters is not None and name != "D"
        return np.minimum(df, max(self.noise.df_trunks, 1.0)) if shared else df


def diagnose(model: NoiseModel) -> Diagnostics | None:
    """Returns the diagnostics of a fitted table; None for laws without transients, and if the noise is unknown."""
    law = model.fit.law
    if {"L", "p"} & set(law.inputs) or law.returns != "linear" or not {"N", "D", "C"} & set(law.inputs):
        return None  # the second training of a law of replay does not start on the transient of the first
    least = least_squares_fit(model.fit)
    noise = replace(model, fit=least).components()
    if noise is None:
        return None
    tangent = _tangent(least)
    return Diagnostics(model, least, noise, tangent, residual_precision(noise.covariance(model.layout), tangent))


def residual_precision(covariance: Array, tangent: Array) -> Array:
    """Returns P = V^-1 - V^-1 J (J' V^-1 J)^-1 J' V^-1, (rows, rows), for covariance V and gradient J."""
    lower = np.linalg.cholesky(covariance)
    white = np.linalg.solve(lower, tangent)
    basis, sizes, _ = np.linalg.svd(white / np.maximum(np.linalg.norm(white, axis=0), 1e-300), full_matrices=False)
    basis = basis[:, sizes > 1e-9]
    inverse = np.linalg.inv(lower)
    return inverse.T @ (np.eye(len(lower)) - basis @ basis.T) @ inverse


def untestable_inputs(diagnostics: Diagnostics) -> list[str]:
    """Returns the inputs along which there are too few trunks to distinguish a transient from shared noise."""
    if diagnostics.model.clusters is None or diagnostics.noise.df_trunks >= FEWEST_TRUNKS:
        return []
    return [name for name in ("N", "C") if name in diagnostics.least.law.inputs]


def testable_inputs(diagnostics: Diagnostics) -> list[str]:
    """Returns the inputs D, N and C of the law along which a transient can be tested."""
    untestable = untestable_inputs(diagnostics)
    return [name for name in ("D", "N", "C") if name in diagnostics.least.law.inputs and name not in untestable]


@dataclass(frozen=True)
class Transient:
    """A transient T exp(-x/x0): its input x, its scale x0, its relative size at the smallest x, its p-value."""

    along: str
    scale: float
    size: float
    p_value: float


def transient(diagnostics: Diagnostics) -> Transient | None:
    """Finds the most significant transient T exp(-x/x0) in the residuals, for x = D, N or C and a grid of scales x0.

    The grid has eight values of x0, from half the smallest x to the geometric mean of the smallest and the largest x.
    Each candidate gets a t test of T by generalized least squares, where the covariance has noise that the branches of
    a trunk share and noise of each row; with few trunks the test is conservative. The p-value returned is the share of
    4000 simulated tables whose smallest p-value is as small, which corrects for the search over candidates. Returns
    None if there is no candidate.
    """
    choices, raw = _candidates(diagnostics)
    if not choices:
        return None
    heights, errors, df = diagnostics.score(raw)
    along = np.array([name for name, _ in choices])
    for name in np.unique(along):
        df[along == name] = diagnostics.df_along(str(name), df[along == name])
    p = 2 * stdtr(df, -np.abs(heights / errors))
    best = int(np.argmin(p))
    noise = diagnostics.noise.draw(np.random.default_rng(0), NULL_DRAWS, diagnostics.layout)
    weights = raw @ diagnostics.precision
    null_t = noise @ weights.T / (errors * np.maximum((weights * raw).sum(1), 1e-300))
    null = (2 * stdtr(df, -np.abs(null_t))).min(1)
    name, scale = choices[best]
    size = float(heights[best]) * float(np.abs(raw[best]).max())
    return Transient(name, scale, size, float((1 + (null <= p[best]).sum()) / (1 + NULL_DRAWS)))


def detectable(diagnostics: Diagnostics) -> tuple[float, float, float] | None:
    """Returns the sizes of the smallest detectable transients exp(-D/D0), with D0 of 1, 2 and 4 times the smallest D.

    A size is relative to the loss at the smallest D. Detectable means: a test at 5 % with known D0 has a power of 90 %.
    None for a law without D.
    """
    if "D" not in diagnostics.least.law.inputs:
        return None
    x = diagnostics.least.problem.inputs["D"]
    choices, raw = _candidates(diagnostics, {"D": x.min() * np.array([1.0, 2.0, 4.0])})
    if len(choices) < 3:
        return None
    _, errors, df = diagnostics.score(raw)
    sizes = (stdtrit(df, 0.95) + stdtrit(df, 0.9)) * errors * np.abs(raw).max(1)
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def _candidates(
    diagnostics: Diagnostics, scales: Mapping[str, Array] | None = None
) -> tuple[list[tuple[str, float]], Array]:
    """Returns (input, scale) of the transients to test, and their values (terms, rows) on the scale of the residuals.

    Skips inputs with fewer than four distinct values, and transients that the law itself can fit.
    """
    problem = diagnostics.least.problem
    predicted = diagnostics.least.predict(problem.inputs)
    choices, terms = [], []
    for along in testable_inputs(diagnostics):
        x = problem.inputs[along]
        rungs = np.unique(x)
        if len(rungs) < (4 if scales is None else 3):
            continue
        usual = np.geomspace(rungs[0] / 2, np.sqrt(rungs[0] * rungs[-1]), 8)
        for scale in usual if scales is None else scales.get(along, ()):
            z = np.exp(-x / scale)
            terms.append(z / predicted if problem.space != "linear" else z)
            choices.append((along, float(scale)))
    if not terms or problem.num_rows - diagnostics.tangent.shape[1] < 4:
        return [], np.zeros((0, problem.num_rows))
    raw = problem.scaled(np.array(terms))
    whole = np.linalg.inv(diagnostics.noise.covariance(diagnostics.layout))
    left = ((raw @ diagnostics.precision) * raw).sum(1) > 1e-6 * ((raw @ whole) * raw).sum(1)
    return [choice for choice, ok in zip(choices, left, strict=True) if ok], raw[left]


def least_squares_fit(fitted: Fit) -> Fit:
    """Returns the least-squares fit of the same law to all rows, after outliers were moved close to the robust fit.

    The residual of an outlier is replaced by the median residual (see `without_outliers`), so that no row is dropped.
    """
    near = fitted.problem.observed + fitted.residuals - without_outliers(fitted.residuals)
    near = near if fitted.problem.scale is None else near * fitted.problem.scale
    problem = replace(fitted.problem, loss_fn="squared", target=from_space(near, fitted.problem.space))
    return refine(problem, fitted.theta)


def _tangent(least: Fit) -> Array:
    """Returns the gradient of the law in each row, including the linear terms that were dropped, (rows, params)."""
    lost = [k for k, j in enumerate(least.law.linear) if not least.problem.active[j]]
    return np.column_stack([least.jacobian, linear_terms(least)[:, lost]]) if lost else least.jacobian


def linear_terms(least: Fit) -> Array:
    """Returns the linear terms with parameters 1, on the scale of the residuals, (rows, terms)."""
    columns = columns_of(least.problem, least.values)[0]
    if least.problem.space != "linear":
        columns = columns / least.predict(least.problem.inputs)[:, None]
    return least.problem.scaled(columns.T).T
