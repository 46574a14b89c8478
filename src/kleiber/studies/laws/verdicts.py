"""Verdicts on a fitted law, and the suspect rows of its table.

A verdict is a code, a level and a sentence. Levels: `refuse` (the rows do not support the law), `warn` (read it before
you quote a number) and `note`. No option switches verdicts off. Suspects are rows that look unfinished, diverged or
badly tuned; in one published table, five such rows of 245 changed the exponent from .37 to .45. They are excluded only
on request; the fit with them and the fit without them are both reported. A run that is better than the law predicts is
never a suspect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.backtest import NAIVE_LABELS, Backtest
from kleiber.studies.laws.fit import Fit, fit
from kleiber.studies.laws.lack_of_fit import SLOPES, LackOfFit, why_not_tested
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.problem import cells_of_rows, pool, scale_of
from kleiber.studies.laws.table import Table, label, number_rows
from kleiber.types import Json, Row

CHOICES = ("none", "suspects")
WORSE = 0.05  # relative excess over the loss of a run with at most as many parameters and tokens
MIN_ROWS, MIN_GAP, ROBUST_SD, MAX_SHARE = 12, 0.02, 6.0, 0.15
RULES = {
    "unfinished": "a status other than finished",
    "diverged": f"a loss {WORSE:.0%} above that of a run with at most as many parameters and tokens",
    "undertuned": f"a loss {ROBUST_SD:g} robust standard deviations and {MIN_GAP:.0%} above the fitted law",
}
LISTED = 10  # a text names at most this many rows

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """A code for programs, a level (refuse, warn or note) and a sentence for people."""

    code: str
    level: str
    text: str


def with_verdicts(record: Row, verdicts: Sequence[Verdict]) -> Json:
    """Returns a record with its verdicts, and whether one of them refuses the law."""
    refused = any(verdict.level == "refuse" for verdict in verdicts)
    return {**record, "verdicts": [asdict(verdict) for verdict in verdicts], "refused": refused}


def identifiability(fitted: Fit, params: Mapping[str, Row]) -> list[Verdict]:
    """Returns verdicts on parameters that are not identified, on narrow inputs and on an ill-conditioned fit.

    params  entry `params` of laws.json
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
        text = f"the parameters are nearly collinear: the condition number of J'J is {condition:.1e} (> 1e8)"
        out.append(Verdict("ill_conditioned", "warn", text))
    return out


def narrow_input(fitted: Fit) -> str:
    """Returns why the irreducible loss E is an extrapolation: N, D or C spans less than a decade. "" if none does."""
    if "E" not in fitted.law.params:
        return ""
    for name in (name for name in ("N", "D", "C") if name in fitted.law.inputs):
        column = fitted.problem.inputs[name]
        decades = float(np.log10(column.max() / column.min()))
        if decades < 1:
            return (
                f"{name} spans only {decades:.2f} decades; with less than one, the irreducible loss E is extrapolated"
            )
    return ""


def misfit(model: NoiseModel, test: LackOfFit | None) -> Verdict:
    """Returns whether the law fits within the noise of its runs, where it does not, or why that was not tested."""
    if test is None:
        why = why_not_tested(model) or "the law has as many parameters as differences between the trunks"
        return Verdict("no_replicates", "note", f"lack of fit is not testable: {why}")
    noise = f"standard deviation of {'trunks' if test.slopes else 'seeds'} {test.noise:.2g}"
    tests = "; ".join(
        f"{stratum.name}: F({stratum.df_misfit:.3g}, {stratum.df_noise:.3g}) = {stratum.statistic:.3g}, "
        f"p = {stratum.p_value:.2g}"
        for stratum in test.strata
    )
    if not test.failed:
        return Verdict("fits_within_noise", "note", f"lack-of-fit test, {tests}; {noise}")
    text = (
        f"the residuals are larger than the noise of runs explains ({tests}; {noise}): {_where(test)}; prediction "
        "intervals include this misfit, confidence intervals assume that the law holds"
    )
    return Verdict("lack_of_fit", "warn", text)


def _where(test: LackOfFit) -> str:
    """Returns where a law misfits: the cell with the largest residual, and the slopes of the sizes at both ends."""
    form = "+.2%" if test.unit == "relative" else "+.3g"
    worst = max(test.cells, key=lambda cell: abs(cell["residual"]))
    out = f"observed minus predicted is {worst['residual']:{form}} at {_point(worst)}"
    if any(stratum.name == SLOPES for stratum in test.failed):
        low, high = (pick(test.slopes, key=lambda row: row["slope"]) for pick in (min, max))
        ends = sorted((low, high), key=lambda row: test.slopes.index(row))
        sides = " and ".join(f"by {row['slope']:{form}} at {_point(row)}" for row in ends)
        out += f", and changes per doubling of D {sides}"
    return out


def _point(row: Row) -> str:
    apart = ("residual", "runs", "slope", "trunks")
    return ", ".join(f"{name}={value:.4g}" for name, value in row.items() if name not in apart)


def pooling(model: NoiseModel) -> list[Verdict]:
    """Returns a note on the runs that were pooled into the rows of the fit, if the table is large."""
    problem = model.fit.problem
    if model.pooled is None:
        return []
    text = f"{model.pooled:,} rows pooled into {problem.num_rows:,} cells of equal {', '.join(problem.law.inputs)}"
    if problem.loss_fn != "squared":
        text += f": the {problem.loss_fn} loss is that of their means, so an outlier within a cell moves its mean"
    return [Verdict("pooled", "note", text)]


def copies(fitted: Fit) -> list[Verdict]:
    """Returns a warning about rows that equal another row in every input and in the loss."""
    rows = np.column_stack([*(fitted.problem.inputs[name] for name in fitted.law.inputs), fitted.problem.target])
    repeats = len(rows) - 1 - int(number_rows(rows).max())
    if not repeats:
        return []
    text = (
        f"{repeats} of {len(rows)} rows equal another row in {', '.join(fitted.law.inputs)} and loss; exclude them if "
        "they are copies, which make intervals too narrow, and keep them if they are seeds with rounded losses"
    )
    return [Verdict("copies", "warn", text)]


def backtest_verdicts(tests: Sequence[Backtest], level: float = 0.9, why: str = "") -> list[Verdict]:
    """Returns a refusal if a naive predictor has a smaller backtest error, and warnings about bias and low coverage."""
    if not tests:
        text = f"extrapolation was not tested: {why or 'no compute cut leaves enough rows on both sides'}"
        return [Verdict("no_backtest", "warn", text)]
    rows = np.array([test.n_test for test in tests], dtype=np.float64)
    error = float(np.average([test.mare for test in tests], weights=rows))
    naive = {name: float(np.average([test.naive[name] for test in tests], weights=rows)) for name in tests[0].naive}
    out, best = [], min(naive, key=lambda n: naive[n])
    if error >= naive[best]:
        text = (
            "the law does not extrapolate better than a naive predictor: the law's backtest error is "
            f"{error:.2%}, that of the {NAIVE_LABELS[best]} is {naive[best]:.2%}"
        )
        out.append(Verdict("no_law", "refuse", text))
    largest = max(tests, key=lambda test: test.cut)
    if largest.n_test >= 3 and abs(largest.bias) > 0.9 * largest.mare and largest.mare > 0.005:
        side = "low" if largest.bias < 0 else "high"
        which = "all" if abs(largest.bias) > 0.999999 * largest.mare else "most"
        text = (
            f"{which} predictions above {largest.along} = {largest.cut:.3g} are too {side} (bias {largest.bias:+.2%}), "
            "which noise does not explain"
        )
        out.append(Verdict("biased", "warn", text))
    coverage = float(np.average([test.coverage for test in tests], weights=rows))
    if coverage < level - 0.25 and rows.sum() >= 4:
        text = f"the {level:.0%} prediction intervals of the backtests contain only {coverage:.0%} of the runs"
        out.append(Verdict("overconfident", "warn", text))
    return out


def unfinished(table: Table) -> Mask:
    """Returns the mask of the rows whose column `status` is not "finished"; no row without such a column."""
    if "status" not in table.frame.columns:
        return np.zeros(len(table), dtype=bool)
    return (table.frame["status"].astype(str) != "finished").to_numpy(dtype=bool)


def diverged(table: Table, law: Law) -> Mask:
    """Returns the mask of the runs whose loss is 5 % above that of a run with at most the same N and D.

    Only for laws of N and D: with repeated data, experts or mixtures, a larger run may be worse.
    """
    if set(law.inputs) != {"N", "D"}:
        return np.zeros(len(table), dtype=bool)
    cell, first = cells_of_rows(table.inputs(law))
    N, D, loss = table.columns["N"][first], table.columns["D"][first], table.target
    means = np.bincount(cell, loss) / np.bincount(cell)  # the least of thousands would make others look diverged
    smaller = (N[None] <= N[:, None]) & (D[None] <= D[:, None])
    best = np.where(smaller, means[None], np.inf).min(1)[cell]
    return loss - best > WORSE * np.abs(best)


def undertuned(table: Table, law: Law, space: str | None = None) -> Mask:
    """Returns the mask of the runs far above a Huber fit of the law: by 6 robust standard deviations and by 2 %.

    Only losses above the fit are suspect, since a bad learning rate raises the loss. None are suspects if there are
    fewer than 12 rows, or if more than 15 % of the rows qualify, since then the law is wrong and not the runs.
    Residuals are in units of the standard errors of the rows, if there are any.
    """
    none = np.zeros(len(table), dtype=bool)
    if len(table) < max(MIN_ROWS, 2 * len(law.params)):
        return none
    pooled = pool(table, law, space or law.space)
    rows = table if pooled is None else pooled.table
    scale = scale_of(rows, space or law.space)
    robust = fit(law, rows.inputs(law), rows.target, "huber", space=space, scale=scale)
    residuals = -robust.on_rows(table).residuals  # observed above the law is positive
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    relative = table.target / robust.predict(table.inputs(law)) - 1
    out = (residuals > ROBUST_SD * max(spread, 1e-12)) & (relative > MIN_GAP)
    return out if out.mean() <= MAX_SHARE else none


def without_suspects(table: Table, law: Law, space: str | None = None) -> Table:
    """Returns the table without suspects; each is recorded under the first rule that applies to it."""
    table = table.drop(unfinished(table), "unfinished")
    table = table.drop(diverged(table, law), "diverged") if len(table) else table
    if len(table) >= len(law.params):
        table = table.drop(undertuned(table, law, space), "undertuned")
    return table


def check_enough(kept: Table, law: Law, suspects: Sequence[Row]) -> None:
    """Raises ValueError if the table without suspects has fewer rows than the law has parameters."""
    if len(kept) < len(law.params):
        rule = str(suspects[0]["rule"])
        raise ValueError(
            f"--exclude suspects leaves {len(kept)} rows, fewer than the {len(law.params)} parameters of {law.name!r}: "
            f"{len(suspects)} rows are suspects; the first of them, row {suspects[0]['row']}, breaks the rule {rule} "
            f"({RULES[rule]}); use --exclude none to fit all rows"
        )


def suspects_verdict(suspects: Sequence[Row], table: Table, exclude: str, why_no_other: str = "") -> Verdict:
    """Returns a verdict that lists the suspects by rule (up to ten each), and says which fits are reported."""
    parts, names = [], _names(table)
    for rule, meaning in RULES.items():
        rows = [names[suspect["row"]] for suspect in suspects if suspect["rule"] == rule]
        if rows:
            parts.append(f"{len(rows)} {rule} ({meaning}): {list_rows(rows)}")
    count = f"{len(suspects)} suspect row{'s' * (len(suspects) > 1)} {'is' if len(suspects) == 1 else 'are'}"
    kept, other = ("excluded from this fit", "with") if exclude == "suspects" else ("in this fit", "without")
    beside = f"a fit {other} them fails: {why_no_other}" if why_no_other else f"a fit {other} them is reported as well"
    level = "note" if exclude == "suspects" else "warn"
    return Verdict("suspects", level, f"{count} {kept}; {'; '.join(parts)}; {beside}")


def list_rows(rows: Sequence[str]) -> str:
    """Returns `row 3`, or `rows 3, 4, ... and 5 others` where there are more than LISTED."""
    rest = f" and {len(rows) - LISTED} others" if len(rows) > LISTED else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(rows[:LISTED])}{rest}"


def _names(table: Table) -> dict[object, str]:
    """Returns the name of each row: its number, followed by its run if the table has a column `run`."""
    numbers = [label(index) for index in table.frame.index]
    runs = table.frame["run"] if "run" in table.frame.columns else None
    if runs is None:
        return {number: str(number) for number in numbers}
    return {number: f"{number} ({run})" for number, run in zip(numbers, runs, strict=True)}


def with_and_without(record: Row, other: Row, exclude: str) -> list[Json]:
    """Returns two table rows, one for the fit with the suspect rows and one without: n, parameters, derived quantities.

    record, other  the main fit and the second fit, as entries of laws.json
    exclude        "suspects" if the main fit is the one without the suspect rows, otherwise "none"
    """
    names = ("without", "with") if exclude == "suspects" else ("with", "without")
    rows = [
        {"suspects": name, "n": entry["n"], **entry["params"], **entry["derived"]}
        for name, entry in zip(names, (record, other), strict=True)
    ]
    return sorted(rows, key=lambda row: row["suspects"])


def verdict_lines(entry: Row) -> list[str]:
    """Returns the printed lines of the verdicts of a record."""
    return [f"{verdict['level']}: {verdict['text']} [{verdict['code']}]" for verdict in entry["verdicts"]]
