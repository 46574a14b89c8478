"""Tests whether the smallest runs follow the power law: steepening slopes, transients, negative irreducible loss.

At the start of training, runs pass through a transient (warm-up, forming of induction heads) before the power law
holds. A law fitted to such runs may have small residuals and still extrapolate badly, so these tests look for trends in
the residuals and not for their size. Noise that the branches of a trunk share depends on the model size only and so
resembles a transient in N; tests along N therefore use the degrees of freedom of trunks, not of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr

from kleiber.studies.laws.fit import Fit, refine
from kleiber.studies.laws.law import Array, Linear
from kleiber.studies.laws.table import cells_without
from kleiber.studies.laws.transients import (
    Diagnostics,
    detectable,
    linear_terms,
    residual_precision,
    testable_inputs,
    transient,
    untestable_inputs,
)
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.studies.laws.verdicts import Verdict
from kleiber.types.score import format_interval

ALPHA = (
    0.01  # level of the slope tests and of the test of E; with 5 % for transients, a clean ladder passes 9 of 10 times
)
SIZEABLE = 0.01  # a transient below this fraction of the loss, at the smallest D or N, is no reason to refuse a law
MOVED = 0.1  # a larger change of beta, if the rows below twice the smallest D are left out, refuses the law
NO_POWER = 1e-6  # exponents below this are at their bound


def pre_asymptotic_reasons(diagnostics: Diagnostics) -> list[str]:
    """Returns the reasons why the smallest runs do not follow the power law yet; empty if no test rejects it.

    Steepening: the slope d log L / d log D (or N) becomes more negative, in a one-sided t test over ladders at each
    inner value with Bonferroni correction; along N it uses the noise of the trunks. Transient: `transient` rejects at 5
    %, and its size is at least 1 %. Negative irreducible loss: E < 0 fits significantly better. Moving exponent: beta
    changes by more than .1, and significantly at 1 %, if the rows below twice the smallest D are left out
    (`beta_change`). Inputs in `untestable_inputs` are not tested.
    """
    reasons = [_steepening(diagnostics), _moving_exponent(diagnostics), _negative_floor(diagnostics)]
    sign = transient(diagnostics)
    if sign is not None and sign.p_value < 5 * ALPHA and abs(sign.size) > SIZEABLE:
        reasons.append(
            f"the residuals contain a transient exp(-{sign.along}/{sign.scale:.2g}) (p = {sign.p_value:.2g}), which is "
            f"{sign.size:+.1%} of the loss at the smallest {sign.along}"
        )
    return [reason for reason in reasons if reason]


def _steepening(diagnostics: Diagnostics) -> str:
    problem = diagnostics.least.problem
    log_loss = np.log(problem.target)
    to_log = {"log": 1.0, "log10": np.log(10.0), "linear": 1 / problem.target}[problem.space]
    to_log = to_log * (1.0 if problem.scale is None else problem.scale)
    for along in testable_inputs(diagnostics):
        bends = _slope_changes({name: problem.inputs[name] for name in diagnostics.least.law.inputs}, along)
        for rung, contrasts in sorted(bends.items()):
            if len(contrasts) < 3:
                continue
            sample = contrasts @ log_loss
            bend, error, df = float(sample.mean()), float(sample.std(ddof=1)) / np.sqrt(len(sample)), len(sample) - 1.0
            if diagnostics.model.clusters is not None and along != "D":  # all ladders run through the same trunks
                variance, several = diagnostics.noise.variance((contrasts.mean(0) * to_log)[None], diagnostics.layout)
                error, df = float(np.sqrt(variance[0])), float(diagnostics.df_along(along, several)[0])
            if stdtr(df, bend / max(error, 1e-12)) < ALPHA / len(bends) and bend < -0.01:
                how = f"by {-bend:.3f}, mean of {len(contrasts)} ladders"
                return f"the slope of log L over log {along} becomes steeper at {along} = {rung:.3g} ({how})"
    return ""


def _slope_changes(inputs: Mapping[str, Array], along: str) -> dict[float, Array]:
    """Returns weights (ladders, rows) of the log losses that give the change of slope at each inner value of x.

    A ladder is a set of rows that are equal in all other inputs; the slope is d log L / d log x between neighboring
    values.
    """
    ladder = cells_without(inputs, along)
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
class BetaChange:
    """beta for all rows (early) and for rows from twice the smallest D on (late), and the interval of the change.

    If the later rows do not determine beta, `late` is nan and the interval is infinite.
    """

    early: float
    late: float
    lo: float
    hi: float
    least: float

    @property
    def moved(self) -> bool:
        """Whether beta changes significantly and by more than .1."""
        return abs(self.late - self.early) > MOVED and not self.lo < 0 < self.hi

    @property
    def settled(self) -> bool:
        """Whether the interval excludes a change of beta by more than .1."""
        return self.lo > -MOVED and self.hi < MOVED


def beta_change(diagnostics: Diagnostics, level: float = 0.9) -> BetaChange | None:
    """Returns how beta changes if the rows below twice the smallest D are left out.

    None if the law has no beta or D, if beta is 0, or if too few rows remain. Both estimates are linear functions of
    the same rows, so the variance of the change follows from the noise of the rows.
    """
    least = diagnostics.least
    problem, names = least.problem, least.kept
    if "beta" not in names or "D" not in least.law.inputs or least.params["beta"] < NO_POWER:
        return None
    high = problem.inputs["D"] >= 1.999 * problem.inputs["D"].min()
    if high.all() or high.sum() < problem.num_params + 3:
        return None
    early, lowest = least.params["beta"], float(problem.inputs["D"].min())
    unknown = BetaChange(early, float("nan"), -float("inf"), float("inf"), lowest)
    if len(np.unique(problem.inputs["D"][high])) < 3:  # E, B and beta are three
        return unknown
    rest, j = problem.rows(high), names.index("beta")
    late = refine(rest, least.theta)
    contrast = -_influence(least)[j]
    contrast[high] += _influence(late)[j]
    variance, df = diagnostics.noise.variance(contrast[None], diagnostics.layout)
    if not np.isfinite(variance[0]) or not variance[0] > 0:
        return unknown
    change, half = late.theta[j] - least.theta[j], student_quantile(df[0], level) * float(np.sqrt(variance[0]))
    ends = [early * float(np.exp(min(change + side * half, 50.0))) - early for side in (-1, 1)]
    return BetaChange(early, late.params["beta"], ends[0], ends[1], lowest)


def _influence(fitted: Fit) -> Array:
    """Returns the derivative of each parameter of a least-squares fit with respect to each row, (params, rows)."""
    return np.linalg.pinv(np.nan_to_num(fitted.problem.exact_jacobian(fitted.theta[None])[0]))


def _moving_exponent(diagnostics: Diagnostics) -> str:
    change = beta_change(diagnostics, 0.99)
    if change is None or not change.moved:
        return ""
    return (
        f"beta changes from {change.early:.2f} to {change.late:.2f} if the rows below twice the smallest D are left out"
    )


def _negative_floor(diagnostics: Diagnostics) -> str:
    """Tests whether E would be negative without its bound, if the fit puts it at 0."""
    least = diagnostics.least
    law, problem = least.law, least.problem
    if not isinstance(law.params.get("E"), Linear) or diagnostics.model.fit.params["E"] > 1e-3 * problem.target.min():
        return ""
    if problem.num_rows - len(law.params) < 3:
        return ""
    place = [name for name, kind in law.params.items() if isinstance(kind, Linear)].index("E")
    without = least.jacobian[:, [name != "E" for name in least.kept]]
    precision = residual_precision(diagnostics.noise.covariance(diagnostics.layout), without)
    (height,), (error,), df = replace(diagnostics, precision=precision).score(linear_terms(least)[:, place][None])
    if height < 0 and stdtr(df[0], height / error) < ALPHA:
        return f"the irreducible loss E is at its bound 0, and would be {height:.3g} without the bound"
    return ""


def pre_asymptotic(diagnostics: Diagnostics | None) -> list[Verdict]:
    """Returns a refusal with its reasons, and a warning about the inputs that cannot be tested."""
    if diagnostics is None:
        return []
    out, reasons, missing = [], pre_asymptotic_reasons(diagnostics), untestable_inputs(diagnostics)
    if reasons:
        text = "the smallest runs do not follow the power law yet: " + "; ".join(reasons)
        out.append(Verdict("pre_asymptotic", "refuse", text))
    if missing:
        text = (
            f"it cannot be tested whether the law already holds at the smallest {' and '.join(missing)}: with only "
            f"{diagnostics.noise.df_trunks:.1f} degrees of freedom between trunks, a transient cannot be distinguished "
            "from the noise that the branches of a trunk share; add seeds or model sizes"
        )
        out.append(Verdict("transient_not_tested", "warn", text))
    return out


def beta_stability(diagnostics: Diagnostics | None, level: float = 0.9) -> list[Verdict]:
    """Returns verdicts on whether beta stays the same without the small-D rows, and on the power of the test.

    The first compares beta of all rows with beta of the rows from twice the smallest D on (`beta_change`). The second
    gives the smallest transient that these rows would reveal (`detectable`).

    level  confidence level of the interval of the change of beta
    """
    if diagnostics is None:
        return []
    out, change = [], beta_change(diagnostics, level)
    how = "" if diagnostics.model.fit.problem.loss_fn == "squared" else "by least squares, "
    if change is not None and not np.isfinite(change.hi):
        text = (
            f"{how}beta is {change.early:.2f} for all rows, but the rows from twice the smallest D on do not determine "
            "it"
        )
        out.append(Verdict("not_settled", "warn", text))
    elif change is not None and not change.moved:
        text = (
            f"{how}beta is {change.early:.2f} for all rows and {change.late:.2f} for the rows from twice the smallest "
            f"D on; {level:.0%} interval of the change {format_interval(change.lo, change.hi, '+.2f')}"
        )
        if change.settled:
            out.append(Verdict("settled", "note", f"{text}: beta is stable"))
        else:
            text += f": beta may not be stable, since a change of more than {MOVED:g} is not excluded"
            out.append(Verdict("not_settled", "warn", text))
    sizes = detectable(diagnostics)
    if sizes is not None:
        text = (
            "these rows would reveal, with probability 0.9, a transient exp(-D/D0) of at least "
            f"{', '.join(f'{size:.1%}' for size in sizes)} of the loss at the smallest D, for D0 of 1, 2 and 4 times "
            "the smallest D"
        )
        out.append(Verdict("detectable", "note", text))
    return out
