"""Suspects: rows that a rule finds unlike the others, flagged or, when asked, left out, each with the rule's name.

Five off-centre runs of 245 moved a published exponent from .37 to .45, so no row is left out unless asked, and the fit
without the suspects stands beside the one with them. It refuses to suspect a run for being better than the law.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.noise_model import scale_of
from kleiber.studies.laws.table import Table, label
from kleiber.studies.laws.verdicts import Verdict

CHOICES = ("none", "suspects")
GOOD = ("finished",)
WORSE = 0.05  # a run beaten by more than this by one with no more parameters and tokens did not train
MIN_ROWS, MIN_GAP, ROBUST_SD, MAX_SHARE = 12, 0.02, 6.0, 0.15
RULES = {
    "unfinished": "a status other than finished",
    "diverged": f"a loss {WORSE:.0%} above that of a run with no more parameters and tokens",
    "undertuned": f"{ROBUST_SD:g} robust standard deviations and {MIN_GAP:.0%} above the law",
}
LISTED = 10  # rows that a verdict names

Mask = NDArray[np.bool_]


def unfinished(table: Table) -> Mask:
    """Rows whose column `status` says anything but finished; none where there is no such column."""
    if "status" not in table.frame.columns:
        return np.zeros(len(table), dtype=bool)
    return ~table.frame["status"].astype(str).isin(GOOD).to_numpy(dtype=bool)


def diverged(table: Table, law: Law) -> Mask:
    """Runs with a loss 5 % above one with at most the same N and D.

    For laws of N and D only: repeated data, experts or mixtures may rightly lose to a smaller run.
    """
    if set(law.inputs) != {"N", "D"}:
        return np.zeros(len(table), dtype=bool)
    N, D, loss = (table.columns[name] for name in ("N", "D", "L"))
    smaller = (N[None] <= N[:, None]) & (D[None] <= D[:, None])
    best = np.where(smaller, loss[None], np.inf).min(1)
    return loss - best > WORSE * np.abs(best)


def undertuned(table: Table, law: Law, space: str | None = None) -> Mask:
    """Runs more than 6 robust sd and 2 % above a Huber fit (delta 1e-3) of all rows, when there are 12 or more of them.

    Above only: a badly set learning rate raises the loss. If more than 15 % of the rows qualify the law is wrong, not
    the runs, and none is suspected. Residuals count in units of the rows' standard errors, where these are known.
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
    """The table after the rules, in order, with every row that one of them finds recorded under its name."""
    table = table.drop(unfinished(table), "unfinished")
    table = table.drop(diverged(table, law), "diverged") if len(table) else table
    if len(table) >= len(law.params):
        table = table.drop(undertuned(table, law, space), "undertuned")
    return table


def check_enough(kept: Table, law: Law, suspects: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where leaving the suspects out leaves fewer rows than the law has parameters."""
    if len(kept) < len(law.params):
        rule = str(suspects[0]["rule"])
        raise ValueError(
            f"--exclude suspects leaves {len(kept)} rows for the {len(law.params)} parameters of {law.name!r}: "
            f"{len(suspects)} are suspects, the first by the rule {rule} ({RULES[rule]}); --exclude none keeps them"
        )


def verdict(suspects: Sequence[Mapping[str, Any]], table: Table, exclude: str, why_no_other: str = "") -> Verdict:
    """Which rows are suspects by which rule (up to ten each), whether they are in the fit, and what stands beside."""
    parts, names = [], _names(table)
    for rule, meaning in RULES.items():
        rows = [names[one["row"]] for one in suspects if one["rule"] == rule]
        if rows:
            more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
            parts.append(f"{len(rows)} {rule} ({meaning}): row{'s' * (len(rows) > 1)} {', '.join(rows[:LISTED])}{more}")
    count = f"{len(suspects)} suspect row{'s' * (len(suspects) > 1)}"
    verb = "is" if len(suspects) == 1 else "are"
    kept, other = ("left out", "with") if exclude == "suspects" else ("in this fit", "without")
    beside = f"no fit {other} them: {why_no_other}" if why_no_other else f"the fit {other} them stands beside this one"
    level = "note" if exclude == "suspects" else "warn"
    return Verdict("suspects", level, f"{count} {verb} {kept}; {'; '.join(parts)}; {beside}")


def _names(table: Table) -> dict[object, str]:
    """What a verdict calls each row: its number, and its run where the table has a column of that name."""
    numbers = [label(index) for index in table.frame.index]
    runs = table.frame["run"] if "run" in table.frame.columns else None
    if runs is None:
        return {number: str(number) for number in numbers}
    return {number: f"{number} ({run})" for number, run in zip(numbers, runs, strict=True)}


def with_and_without(record: Mapping[str, Any], other: Mapping[str, Any], exclude: str) -> list[dict[str, Any]]:
    """Two rows, with the suspects and without them: n, and the parameters and derived quantities of each fit.

    `record` is the fit that was asked for and `other` the one beside it, both as laws.json holds them.
    """
    names = ("without", "with") if exclude == "suspects" else ("with", "without")
    rows = [
        {"suspects": name, "n": entry["n"], **entry["params"], **entry["derived"]}
        for name, entry in zip(names, (record, other), strict=True)
    ]
    return sorted(rows, key=lambda row: row["suspects"])
