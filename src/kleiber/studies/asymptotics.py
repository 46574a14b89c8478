"""Is the ladder on the power law yet? Steepening slopes, transients, a floor that wants to be negative.

Small runs pass a transient before the power law (induction heads, warm-up). A law fitted through it fits well and
extrapolates badly, so the tests look for structure in the residuals, not for a large error. Each test compares with the
noise that the table has: what the branches of a trunk share is a function of size alone and looks like a transient in
N, so tests along N have the degrees of freedom of trunks, not of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from kleiber.studies.fit import Fit
from kleiber.studies.law import Array, Linear
from kleiber.studies.noise_model import NoiseModel
from kleiber.studies.replicates import cells
from kleiber.studies.solve import descend, from_space
from kleiber.studies.starts import columns_of
from kleiber.studies.student import reach
from kleiber.studies.variance_components import Layout, VarianceComponents, without_outliers

ALPHA = 0.01  # level of the slope and of the floor test; the transient test has 5 %: a clean ladder passes 9 in 10
SIZEABLE = 0.01  # relative size at the lowest rung below which a transient is no reason to refuse
MOVED = 0.1  # change of beta on doubling the least D that forbids the word law
NO_POWER = 1e-6  # an exponent below is at its bound
NULL_DRAWS = 4000
FEWEST_TRUNKS = 3.0  # degrees of freedom between trunks below which nothing is judged along N


@dataclass(frozen=True)
class Transient:
    """The best-fitting transient: along which input, its scale, relative size at the lowest rung, and p-value."""

    along: str
    scale: float
    size: float
    p_value: float


@dataclass(frozen=True)
class Diagnostics:
    """What the tests of one table share: its least-squares fit, the noise of its rows, and their weights.

    tangent    the law's gradient by row, dropped linear terms included: a floor at 0 must not read as a transient
    precision  inverse covariance of the rows' noise less what the law absorbs: P of generalized least squares
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
        """Observed above the law, on the scale of the fit."""
        return -self.least.residuals

    def score(self, directions: Array) -> tuple[Array, Array, Array]:
        """Height, standard error and degrees of freedom of each added term, `directions` (terms, rows)."""
        weights = directions @ self.precision
        size = np.maximum((weights * directions).sum(1), 1e-300)
        variance, df = self.noise.variance(weights, self.layout)
        return weights @ self.residuals / size, np.sqrt(variance) / size, df

    def df_along(self, name: str, df: Array) -> Array:
        """Degrees of freedom of a test along an input: those of trunks at most, where that input tells trunks apart."""
        shared = self.model.clusters is not None and name != "D"
        return np.minimum(df, max(self.noise.df_trunks, 1.0)) if shared else df


def diagnose(model: NoiseModel) -> Diagnostics | None:
    """The tests of a table; None for laws they are not about, and without noise to compare with."""
    law = model.fit.law
    if {"L", "p"} & set(law.inputs) or law.returns != "linear" or not {"N", "D", "C"} & set(law.inputs):
        return None  # a law of replay is one of a second training, which begins on no transient of the first
    least = _squared(model.fit)
    noise = model.components(least)
    if noise is None:
        return None
    tangent = _tangent(least)
    return Diagnostics(model, least, noise, tangent, _absorbing(noise.covariance(model.layout), tangent))


def _absorbing(covariance: Array, tangent: Array) -> Array:
    """P = V^-1 - V^-1 J (J' V^-1 J)^-1 J' V^-1: what is left of a direction when the law has absorbed its part."""
    lower = np.linalg.cholesky(covariance)
    white = np.linalg.solve(lower, tangent)
    basis, sizes, _ = np.linalg.svd(white / np.maximum(np.linalg.norm(white, axis=0), 1e-300), full_matrices=False)
    basis = basis[:, sizes > 1e-9]
    inverse = np.linalg.inv(lower)
    return inverse.T @ (np.eye(len(lower)) - basis @ basis.T) @ inverse


def signs(tests: Diagnostics) -> list[str]:
    """Reasons to call the ladder pre-asymptotic; empty means no sign of it in these rows.

    Steepening: mean change of local slope d log L / d log D (or N) < 0, one-sided t over ladders, each rung tested
    apart (Bonferroni); along N with the noise of the trunks that all ladders run through. Transient: `transient`, at
    5 % and at least 1 % in size. Negative floor: the fit is significantly better with E < 0. Moving: beta changes by
    more than .1, and at 1 % from 0, when D below twice its least is left out; `move` says more of it, and `detectable`
    what these rows cannot show. Nothing is judged along inputs of `untold`.
    """
    reasons = [_steepening(tests), _moving(tests), _negative_floor(tests)]
    sign = transient(tests)
    if sign is not None and sign.p_value < 5 * ALPHA and abs(sign.size) > SIZEABLE:
        reasons.append(
            f"a transient exp(-{sign.along}/{sign.scale:.2g}) is in the residuals (p = {sign.p_value:.2g}), "
            f"{sign.size:+.1%} at the smallest {sign.along}"
        )
    return [reason for reason in reasons if reason]


def untold(tests: Diagnostics) -> list[str]:
    """Inputs along which a transient cannot be told from the noise that trunks share: fewer than 3 degrees of freedom
    between trunks."""
    if tests.model.clusters is None or tests.noise.df_trunks >= FEWEST_TRUNKS:
        return []
    return [name for name in ("N", "C") if name in tests.least.law.inputs]


def transient(tests: Diagnostics) -> Transient | None:
    """The score test for an added term T exp(-x/x0), x = D, N or C, x0 on a grid over the lower half of the rungs.

    Each term is tested by generalized least squares with the noise of trunks and rows, against t with the degrees of
    freedom of its own variance, which the term itself inflates: with few trunks the test is conservative. The least
    p-value is compared with its distribution over 4000 tables of that noise, so the search over x0 is paid for.
    """
    choices, raw = _candidates(tests)
    if not choices:
        return None
    heights, errors, df = tests.score(raw)
    along = np.array([name for name, _ in choices])
    for name in np.unique(along):
        df[along == name] = tests.df_along(str(name), df[along == name])
    p = 2 * stdtr(df, -np.abs(heights / errors))
    best = int(np.argmin(p))
    noise = tests.noise.draw(np.random.default_rng(0), NULL_DRAWS, tests.layout)
    weights = raw @ tests.precision
    null_t = noise @ weights.T / (errors * np.maximum((weights * raw).sum(1), 1e-300))
    null = (2 * stdtr(df, -np.abs(null_t))).min(1)
    name, scale = choices[best]
    size = float(heights[best]) * float(np.abs(raw[best]).max())
    return Transient(name, scale, size, float((1 + (null <= p[best]).sum()) / (1 + NULL_DRAWS)))


def detectable(tests: Diagnostics) -> tuple[float, float, float] | None:
    """How large a transient exp(-D/D0) these rows would show: its size at the least D, for D0 = 1, 2 and 4 of them.

    Relative to the loss, for a test of known D0 at 5 % and a power of 90 %; the law's own terms absorb the rest of it.
    None without D.
    """
    if "D" not in tests.least.law.inputs:
        return None
    x = tests.least.problem.inputs["D"]
    choices, raw = _candidates(tests, {"D": x.min() * np.array([1.0, 2.0, 4.0])})
    if len(choices) < 3:
        return None
    _, errors, df = tests.score(raw)
    sizes = (stdtrit(df, 0.95) + stdtrit(df, 0.9)) * errors * np.abs(raw).max(1)
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def _candidates(tests: Diagnostics, scales: Mapping[str, Array] | None = None) -> tuple[list[tuple[str, float]], Array]:
    """Transients to look for: (input, scale) of each and its rows on the scale of the fit.

    None of an input with fewer than four rungs, and none that the law absorbs.
    """
    problem, law = tests.least.problem, tests.least.law
    predicted = tests.least.predict(problem.inputs)
    choices, terms = [], []
    for along in (name for name in ("D", "N", "C") if name in law.inputs and name not in untold(tests)):
        x = problem.inputs[along]
        rungs = np.unique(x)
        if len(rungs) < (4 if scales is None else 3):
            continue
        usual = np.geomspace(rungs[0] / 2, np.sqrt(rungs[0] * rungs[-1]), 8)
        for scale in usual if scales is None else scales.get(along, ()):
            z = np.exp(-x / scale)
            terms.append(z / predicted if problem.space != "linear" else z)
            choices.append((along, float(scale)))
    if not terms or problem.num_rows - tests.tangent.shape[1] < 4:
        return [], np.zeros((0, problem.num_rows))
    raw = problem.scaled(np.array(terms))
    whole = np.linalg.inv(tests.noise.covariance(tests.layout))
    left = ((raw @ tests.precision) * raw).sum(1) > 1e-6 * ((raw @ whole) * raw).sum(1)
    return [choice for choice, ok in zip(choices, left, strict=True) if ok], raw[left]


def _squared(found: Fit) -> Fit:
    """The same law by least squares, from where the robust fit ended, without the outliers of that fit."""
    near = found.problem.observed + found.residuals - without_outliers(found.residuals)
    near = near if found.problem.scale is None else near * found.problem.scale
    problem = replace(found.problem, loss_fn="squared", target=from_space(near, found.problem.space))
    theta, value = descend(problem, found.theta[None], rounds=100, tolerance=1e-10)
    return Fit(problem, theta[0], float(value[0]))


def _tangent(least: Fit) -> Array:
    """The law's gradient by row, dropped linear terms included."""
    jacobian = np.nan_to_num(least.problem.jacobian(least.theta[None])[0])
    if not least.dropped:
        return jacobian
    lost = [k for k, j in enumerate(least.law.linear) if not least.problem.active[j]]
    return np.column_stack([jacobian, _terms(least)[:, lost]])


def _terms(least: Fit) -> Array:
    """The linear terms of the law per unit of their factors, on the scale of the fit, (rows, terms)."""
    columns = columns_of(least.problem, least.values)[0]
    if least.problem.space != "linear":
        columns = columns / least.predict(least.problem.inputs)[:, None]
    return least.problem.scaled(columns.T).T


def _steepening(tests: Diagnostics) -> str:
    problem = tests.least.problem
    log_loss = np.log(problem.target)
    to_log = {"log": 1.0, "log10": np.log(10.0), "linear": 1 / problem.target}[problem.space]
    to_log = to_log * (1.0 if problem.scale is None else problem.scale)
    for along in (name for name in ("D", "N", "C") if name in tests.least.law.inputs and name not in untold(tests)):
        others = [name for name in tests.least.law.inputs if name != along]
        bends = _bends(problem.inputs, along, others)
        for rung, contrasts in sorted(bends.items()):
            if len(contrasts) < 3:
                continue
            sample = contrasts @ log_loss
            bend, error, df = float(sample.mean()), float(sample.std(ddof=1)) / np.sqrt(len(sample)), len(sample) - 1.0
            if tests.model.clusters is not None and along != "D":  # all ladders run through the same trunks
                variance, several = tests.noise.variance((contrasts.mean(0) * to_log)[None], tests.layout)
                error, df = float(np.sqrt(variance[0])), float(tests.df_along(along, several)[0])
            if stdtr(df, bend / max(error, 1e-12)) < ALPHA / len(bends) and bend < -0.01:
                how = f"by {-bend:.3f}, {len(contrasts)} ladders"
                return f"log L against log {along} steepens near {along} = {rung:.3g} ({how})"
    return ""


def _bends(inputs: Mapping[str, Array], along: str, others: list[str]) -> dict[float, Array]:
    """For each inner rung the contrasts of log losses that are the changes of local slope d log L / d log x, one for
    each ladder (rows equal in all other inputs), (ladders, rows).
    """
    rows = len(inputs[along])
    ladder = cells({name: inputs[name] for name in others}) if others else np.zeros(rows, dtype=int)
    bends: dict[float, list[Array]] = {}
    for number in np.unique(ladder):
        x = np.unique(inputs[along][ladder == number])
        at = [((ladder == number) & (inputs[along] == value)).astype(np.float64) for value in x]
        means = [mask / mask.sum() for mask in at]
        steps = np.diff(np.log(x))
        slopes = [(means[k + 1] - means[k]) / steps[k] for k in range(len(steps))]
        for k in range(1, len(x) - 1):
            bends.setdefault(float(x[k]), []).append(slopes[k] - slopes[k - 1])
    return {rung: np.array(contrasts) for rung, contrasts in bends.items()}


@dataclass(frozen=True)
class Move:
    """beta over all rows and over those of twice the least D, and the interval of the change.

    The interval is without bounds, and `late` nan, where the rows above cannot tell a beta of their own.
    """

    early: float
    late: float
    lo: float
    hi: float
    least: float

    @property
    def moved(self) -> bool:
        """By more than .1, and not by chance."""
        return abs(self.late - self.early) > MOVED and not self.lo < 0 < self.hi

    @property
    def settled(self) -> bool:
        """Whether a move of more than .1 is excluded."""
        return self.lo > -MOVED and self.hi < MOVED


def move(tests: Diagnostics, level: float = 0.9) -> Move | None:
    """What doubling the least D does to beta; None for laws without both, with too few rows above, and where beta is
    at 0: then nothing depends on D.

    The change is a difference of two linear functions of the same rows, so its variance is that of their noise.
    """
    least = tests.least
    problem, names = least.problem, [n for n, on in zip(least.law.params, least.problem.active, strict=True) if on]
    if "beta" not in names or "D" not in least.law.inputs or least.params["beta"] < NO_POWER:
        return None
    high = problem.inputs["D"] >= 1.999 * problem.inputs["D"].min()
    if high.all() or high.sum() < problem.num_params + 3:
        return None
    early, lowest = least.params["beta"], float(problem.inputs["D"].min())
    unknown = Move(early, float("nan"), -float("inf"), float("inf"), lowest)
    if len(np.unique(problem.inputs["D"][high])) < 3:  # E, B and beta are three
        return unknown
    rest, j = problem.rows(high), names.index("beta")
    theta, value = descend(rest, least.theta[None], rounds=100, tolerance=1e-10)
    late = Fit(rest, theta[0], float(value[0]))
    contrast = -_influence(least)[j]
    contrast[high] += _influence(late)[j]
    variance, df = tests.noise.variance(contrast[None], tests.layout)
    if not np.isfinite(variance[0]) or not variance[0] > 0:
        return unknown
    change, half = late.theta[j] - least.theta[j], reach(df[0], level) * float(np.sqrt(variance[0]))
    ends = [early * float(np.exp(min(change + side * half, 50.0))) - early for side in (-1, 1)]
    return Move(early, late.params["beta"], ends[0], ends[1], lowest)


def _influence(found: Fit) -> Array:
    """How far each coordinate of a least-squares fit goes with each row, (params, rows)."""
    return np.linalg.pinv(np.nan_to_num(found.problem.exact_jacobian(found.theta[None])[0]))


def _moving(tests: Diagnostics) -> str:
    change = move(tests, 0.99)
    if change is None or not change.moved:
        return ""
    return f"beta moves from {change.early:.2f} to {change.late:.2f} on doubling the least D"


def _negative_floor(tests: Diagnostics) -> str:
    """The score of a floor below 0 where the fit has put it at 0."""
    least = tests.least
    law, problem = least.law, least.problem
    if not isinstance(law.params.get("E"), Linear) or tests.model.fit.params["E"] > 1e-3 * problem.target.min():
        return ""
    if problem.num_rows - len(law.params) < 3:
        return ""
    place = [name for name, kind in law.params.items() if isinstance(kind, Linear)].index("E")
    names = [name for name, on in zip(law.params, problem.active, strict=True) if on]
    without = np.nan_to_num(problem.jacobian(least.theta[None])[0])[:, [name != "E" for name in names]]
    precision = _absorbing(tests.noise.covariance(tests.layout), without)
    (height,), (error,), df = replace(tests, precision=precision).score(_terms(least)[:, place][None])
    if height < 0 and stdtr(df[0], height / error) < ALPHA:
        return f"E sits at 0 and would be {height:.3g} if it could"
    return ""
