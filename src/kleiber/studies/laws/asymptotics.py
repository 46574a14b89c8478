"""Is the ladder on the power law yet? Steepening slopes, transients, a floor that wants to be negative.

Small runs pass a transient before the power law (induction heads, warm-up). A law fitted through it fits well and
extrapolates badly, so the tests look for structure in the residuals, not for a large error. Each test compares with the
noise that the table has: what the branches of a trunk share is a function of size alone and looks like a transient in
N, so tests along N have the degrees of freedom of trunks, not of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr

from kleiber.studies.compare.intervals import reach
from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.law import Array, Linear
from kleiber.studies.laws.replicates import cells
from kleiber.studies.laws.solve import descend
from kleiber.studies.laws.transients import Diagnostics, absorbing, linear_terms, transient, untold

ALPHA = 0.01  # level of the slope and of the floor test; the transient test has 5 %: a clean ladder passes 9 in 10
SIZEABLE = 0.01  # relative size at the lowest rung below which a transient is no reason to refuse
MOVED = 0.1  # change of beta on doubling the least D that forbids the word law
NO_POWER = 1e-6  # an exponent below is at its bound


def signs(diagnostics: Diagnostics) -> list[str]:
    """Reasons to call the ladder pre-asymptotic; empty means no sign of it in these rows.

    Steepening: mean change of local slope d log L / d log D (or N) < 0, one-sided t over ladders, each rung tested
    apart (Bonferroni); along N with the noise of the trunks that all ladders run through. Transient: `transient`, at
    5 % and at least 1 % in size. Negative floor: the fit is significantly better with E < 0. Moving: beta changes by
    more than .1, and at 1 % from 0, when D below twice its least is left out; `move` says more of it, and `detectable`
    what these rows cannot show. Nothing is judged along inputs of `untold`.
    """
    reasons = [_steepening(diagnostics), _moving(diagnostics), _negative_floor(diagnostics)]
    sign = transient(diagnostics)
    if sign is not None and sign.p_value < 5 * ALPHA and abs(sign.size) > SIZEABLE:
        reasons.append(
            f"a transient exp(-{sign.along}/{sign.scale:.2g}) is in the residuals (p = {sign.p_value:.2g}), "
            f"{sign.size:+.1%} at the smallest {sign.along}"
        )
    return [reason for reason in reasons if reason]


def _steepening(diagnostics: Diagnostics) -> str:
    problem = diagnostics.least.problem
    log_loss = np.log(problem.target)
    to_log = {"log": 1.0, "log10": np.log(10.0), "linear": 1 / problem.target}[problem.space]
    to_log = to_log * (1.0 if problem.scale is None else problem.scale)
    for along in (
        name for name in ("D", "N", "C") if name in diagnostics.least.law.inputs and name not in untold(diagnostics)
    ):
        others = [name for name in diagnostics.least.law.inputs if name != along]
        bends = _bends(problem.inputs, along, others)
        for rung, contrasts in sorted(bends.items()):
            if len(contrasts) < 3:
                continue
            sample = contrasts @ log_loss
            bend, error, df = float(sample.mean()), float(sample.std(ddof=1)) / np.sqrt(len(sample)), len(sample) - 1.0
            if diagnostics.model.clusters is not None and along != "D":  # all ladders run through the same trunks
                variance, several = diagnostics.noise.variance((contrasts.mean(0) * to_log)[None], diagnostics.layout)
                error, df = float(np.sqrt(variance[0])), float(diagnostics.df_along(along, several)[0])
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


def move(diagnostics: Diagnostics, level: float = 0.9) -> Move | None:
    """What doubling the least D does to beta; None for laws without both, with too few rows above, and where beta is
    at 0: then nothing depends on D.

    The change is a difference of two linear functions of the same rows, so its variance is that of their noise.
    """
    least = diagnostics.least
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
    variance, df = diagnostics.noise.variance(contrast[None], diagnostics.layout)
    if not np.isfinite(variance[0]) or not variance[0] > 0:
        return unknown
    change, half = late.theta[j] - least.theta[j], reach(df[0], level) * float(np.sqrt(variance[0]))
    ends = [early * float(np.exp(min(change + side * half, 50.0))) - early for side in (-1, 1)]
    return Move(early, late.params["beta"], ends[0], ends[1], lowest)


def _influence(found: Fit) -> Array:
    """How far each coordinate of a least-squares fit goes with each row, (params, rows)."""
    return np.linalg.pinv(np.nan_to_num(found.problem.exact_jacobian(found.theta[None])[0]))


def _moving(diagnostics: Diagnostics) -> str:
    change = move(diagnostics, 0.99)
    if change is None or not change.moved:
        return ""
    return f"beta moves from {change.early:.2f} to {change.late:.2f} on doubling the least D"


def _negative_floor(diagnostics: Diagnostics) -> str:
    """The score of a floor below 0 where the fit has put it at 0."""
    least = diagnostics.least
    law, problem = least.law, least.problem
    if not isinstance(law.params.get("E"), Linear) or diagnostics.model.fit.params["E"] > 1e-3 * problem.target.min():
        return ""
    if problem.num_rows - len(law.params) < 3:
        return ""
    place = [name for name, kind in law.params.items() if isinstance(kind, Linear)].index("E")
    names = [name for name, on in zip(law.params, problem.active, strict=True) if on]
    without = np.nan_to_num(problem.jacobian(least.theta[None])[0])[:, [name != "E" for name in names]]
    precision = absorbing(diagnostics.noise.covariance(diagnostics.layout), without)
    (height,), (error,), df = replace(diagnostics, precision=precision).score(linear_terms(least)[:, place][None])
    if height < 0 and stdtr(df[0], height / error) < ALPHA:
        return f"E sits at 0 and would be {height:.3g} if it could"
    return ""
