"""Verdicts on a fitted law, and the suspect rows of its table.

A verdict is a code, a level and a sentence; it is computed from the rows and the fit, and no option switches it off.
Levels: `refuse` (no law is established), `warn` (read this before quoting a number), `note`. Suspects are rows that a
rule flags: five off-center runs of 245 moved a published exponent from .37 to .45. They are left out only on request,
and the fit without them is reported beside the fit with them. No run is a suspect for being better than the law.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from kleiber.studies.laws.backtest import Backtest
from kleiber.studies.laws.fit import Fit, fit
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.noise_model import scale_of
from kleiber.studies.laws.table import Table, cells, label
from kleiber.types import Json, Row

CHOICES = ("none", "suspects")
WORSE = 0.05  # a run worse by more than this than a run with no more parameters and tokens has diverged
MIN_ROWS, MIN_GAP, ROBUST_SD, MAX_SHARE = 12, 0.02, 6.0, 0.15
RULES = {
    "unfinished": "a status other than finished",
    "diverged": f"a loss {WORSE:.0%} above that of a run with no more parameters and tokens",
    "undertuned": f"{ROBUST_SD:g} robust standard deviations and {MIN_GAP:.0%} above the law",
}
LISTED = 10  # most rows that a verdict names

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """A code for programs, a level (refuse, warn or note) and a sentence."""

    code: str
    level: str
    text: str


def identifiability(fitted: Fit, params: Mapping[str, Row]) -> list[Verdict]:
    """Verdicts on each parameter that is not identified, on narrow inputs and on an ill-conditioned fit.

    `params` as laws.json holds them.
    """
    out = [
        Verdict("not_identified", "warn", f"{name} is not identified: {entry['reason']}")
        for name, entry in params.items()
        if not entry["identified"]
    ]
    narrow, condition = narrow_input(fitted), fitted.covariance()[1]
    if narrow:
        out.append(Verdict("narrow_input", "warn", narrow))
    if condition > 1e8:
        text = f"the condition number of J'J is {condition:.1e} (> 1e8): parameters trade off against each other"
        out.append(Verdict("ill_conditioned", "warn", text))
    return out


def narrow_input(fitted: Fit) -> str:
    """Why a floor E is an extrapolation, whatever its profile: N, D or C spans less than a decade; "" if none does."""
    if "E" not in fitted.law.params:
        return ""
    for name in (name for name in ("N", "D", "C") if name in fitted.law.inputs):
        column = fitted.problem.inputs[name]
        decades = float(np.log10(column.max() / column.min()))
        if decades < 1:
            return f"{name} spans {decades:.2f} decades, less than one, so that E is an extrapolation"
    return ""


def replicates(fitted: Fit, level: float = 0.05) -> list[Verdict]:
    """Seed noise and the lack-of-fit test, or that neither can be computed."""
    test = lack_of_fit(fitted)
    if test is None:
        text = "no cell was trained with two seeds: seed noise is unknown, and residuals mix it with misfit"
        return [Verdict("no_replicates", "note", text)]
    text = (
        f"standard deviation of seeds {test.seed_noise:.2g} ({test.pure_df} degrees of freedom), lack of fit "
        f"F = {test.statistic:.3g}, p = {test.p_value:.2g}"
    )
    if test.p_value < level:
        text = f"residuals exceed the seed noise: {text}; intervals that assume noise alone are too narrow"
        return [Verdict("lack_of_fit", "warn", text)]
    return [Verdict("fits_within_noise", "note", text)]


def copies(fitted: Fit) -> list[Verdict]:
    """Rows that repeat another in every input and in the loss: copies, unless losses are rounded."""
    rows = np.column_stack([*(fitted.problem.inputs[name] for name in fitted.law.inputs), fitted.problem.target])
    repeats = len(rows) - len(np.unique(rows, axis=0))
    if not repeats:
        return []
    text = (
        f"{repeats} of {len(rows)} rows repeat another in {', '.join(fitted.law.inputs)} and loss: leave out copies, "
        "which make noise and intervals look small (seeds whose losses are rounded may stay)"
    )
    return [Verdict("copies", "warn", text)]


def backtest_verdicts(tests: Sequence[Backtest], level: float = 0.9, why: str = "") -> list[Verdict]:
    """A refusal when a naive predictor does as well over all test rows; warnings for bias and low coverage."""
    if not tests:
        text = f"{why or 'no compute cut leaves enough rows on both sides'}: extrapolation is untested"
        return [Verdict("no_backtest", "warn", text)]
    rows = np.array([test.n_test for test in tests], dtype=np.float64)
    error = float((rows * [test.mare for test in tests]).sum() / rows.sum())
    naive = {n: float((rows * [t.naive[n] for t in tests]).sum() / rows.sum()) for n in tests[0].naive}
    out, best = [], min(naive, key=lambda n: naive[n])
    if error >= naive[best]:
        text = (
            f"the backtest error of {error:.2%} is no better than that of the naive predictor "
            f"{best.replace('_', ' ')} ({naive[best]:.2%}): this is no law"
        )
        out.append(Verdict("no_law", "refuse", text))
    largest = max(tests, key=lambda test: test.cut)
    if largest.n_test >= 3 and abs(largest.bias) > 0.9 * largest.mare and largest.mare > 0.005:
        side = "low" if largest.bias < 0 else "high"
        which = "every prediction is" if abs(largest.bias) > 0.999999 * largest.mare else "predictions are"
        text = f"above {largest.along} = {largest.cut:.3g} {which} too {side} ({largest.bias:+.2%}): misfit, not noise"
        out.append(Verdict("biased", "warn", text))
    coverage = float((rows * [test.coverage for test in tests]).sum() / rows.sum())
    if coverage < level - 0.25 and rows.sum() >= 4:
        text = f"the {level:.0%} band of a new run covers {coverage:.0%} of the larger runs"
        out.append(Verdict("overconfident", "warn", text))
    return out


@dataclass(frozen=True)
class LackOfFit:
    """F = (SS_lof/df_lof) / (SS_pure/df_pure), its p-value, and the standard deviation of seeds with its df."""

    seed_noise: float
    pure_df: int
    statistic: float
    lof_df: int
    p_value: float


def lack_of_fit(fit: Fit) -> LackOfFit | None:
    """The lack-of-fit test from replicates; None without replicates and with too few cells."""
    member = cells({name: fit.problem.inputs[name] for name in fit.law.inputs})
    sizes = np.bincount(member)
    pure_df, lof_df = len(member) - len(sizes), len(sizes) - fit.problem.num_params
    if pure_df < 1 or lof_df < 1:
        return None
    scale = np.ones(len(member)) if fit.problem.scale is None else fit.problem.scale
    residuals = fit.residuals * scale
    weights = np.bincount(member, scale**-2)
    means = np.bincount(member, residuals * scale**-2) / weights
    pure = float((((residuals - means[member]) / scale) ** 2).sum())
    misfit = float((weights * means**2).sum())
    statistic = (misfit / lof_df) / max(pure / pure_df, 1e-300)
    return LackOfFit(
        float(np.sqrt(pure / pure_df)), pure_df, statistic, lof_df, float(fdtrc(lof_df, pure_df, statistic))
    )


def unfinished(table: Table) -> Mask:
    """Mask of the rows whose column `status` is not finished; none without that column."""
    if "status" not in table.frame.columns:
        return np.zeros(len(table), dtype=bool)
    return (table.frame["status"].astype(str) != "finished").to_numpy(dtype=bool)


def diverged(table: Table, law: Law) -> Mask:
    """Mask of the runs with a loss 5 % above that of a run with no more N and D.

    For laws of N and D only: with repeated data, experts or mixtures a larger run may be worse.
    """
    if set(law.inputs) != {"N", "D"}:
        return np.zeros(len(table), dtype=bool)
    N, D, loss = (table.columns[name] for name in ("N", "D", "L"))
    smaller = (N[None] <= N[:, None]) & (D[None] <= D[:, None])
    best = np.where(smaller, loss[None], np.inf).min(1)
    return loss - best > WORSE * np.abs(best)


def undertuned(table: Table, law: Law, space: str | None = None) -> Mask:
    """Mask of the runs over 6 robust standard deviations and 2 % above a Huber fit (delta 1e-3) of 12 or more rows.

    Above only, since a bad learning rate raises the loss. If more than 15 % of the rows qualify, the law is wrong, not
    the runs, and none is a suspect. Residuals are in units of the standard errors of the rows, where these are known.
    """
    none = np.zeros(len(table), dtype=bool)
    if len(table) < max(MIN_ROWS, 2 * len(law.params)):
        return none
    scale = scale_of(table, space or law.space)
    robust = fit(law, table.inputs(law), table.target, "huber", space=space, scale=scale)
    residuals = -robust.residuals  # observed above the law is positive
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    relative = table.target / robust.predict(table.inputs(law)) - 1
    out = (residuals > ROBUST_SD * max(spread, 1e-12)) & (relative > MIN_GAP)
    return out if out.mean() <= MAX_SHARE else none


def without_suspects(table: Table, law: Law, space: str | None = None) -> Table:
    """The table without the rows that the rules flag, each recorded under the first rule that does."""
    table = table.drop(unfinished(table), "unfinished")
    table = table.drop(diverged(table, law), "diverged") if len(table) else table
    if len(table) >= len(law.params):
        table = table.drop(undertuned(table, law, space), "undertuned")
    return table


def check_enough(kept: Table, law: Law, suspects: Sequence[Row]) -> None:
    """Raises ValueError where leaving the suspects out leaves fewer rows than the law has parameters."""
    if len(kept) < len(law.params):
        rule = str(suspects[0]["rule"])
        raise ValueError(
            f"--exclude suspects leaves {len(kept)} rows for the {len(law.params)} parameters of {law.name!r}: "
            f"{len(suspects)} are suspects, the first by the rule {rule} ({RULES[rule]}); --exclude none keeps them"
        )


def suspects_verdict(suspects: Sequence[Row], table: Table, exclude: str, why_no_other: str = "") -> Verdict:
    """The suspects by rule (up to ten each), whether they are in the fit, and whether the other fit is reported."""
    parts, names = [], _names(table)
    for rule, meaning in RULES.items():
        rows = [names[suspect["row"]] for suspect in suspects if suspect["rule"] == rule]
        if rows:
            rest = f" and {len(rows) - LISTED} others" if len(rows) > LISTED else ""
            parts.append(f"{len(rows)} {rule} ({meaning}): row{'s' * (len(rows) > 1)} {', '.join(rows[:LISTED])}{rest}")
    count = f"{len(suspects)} suspect row{'s' * (len(suspects) > 1)} {'is' if len(suspects) == 1 else 'are'}"
    kept, other = ("left out", "with") if exclude == "suspects" else ("in this fit", "without")
    beside = f"no fit {other} them: {why_no_other}" if why_no_other else f"the fit {other} them is reported beside it"
    level = "note" if exclude == "suspects" else "warn"
    return Verdict("suspects", level, f"{count} {kept}; {'; '.join(parts)}; {beside}")


def _names(table: Table) -> dict[object, str]:
    """The name of each row in a verdict: its number, and its run where the table has a column `run`."""
    numbers = [label(index) for index in table.frame.index]
    runs = table.frame["run"] if "run" in table.frame.columns else None
    if runs is None:
        return {number: str(number) for number in numbers}
    return {number: f"{number} ({run})" for number, run in zip(numbers, runs, strict=True)}


def with_and_without(record: Row, other: Row, exclude: str) -> list[Json]:
    """Two rows, with and without the suspects: n, and the parameters and derived quantities of each fit.

    `record` is the main fit and `other` the second one, as laws.json holds them.
    """
    names = ("without", "with") if exclude == "suspects" else ("with", "without")
    rows = [
        {"suspects": name, "n": entry["n"], **entry["params"], **entry["derived"]}
        for name, entry in zip(names, (record, other), strict=True)
    ]
    return sorted(rows, key=lambda row: row["suspects"])
