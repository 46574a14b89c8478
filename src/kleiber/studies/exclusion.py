"""Leaving runs out by rule: each rule is a function of the rows, each excluded row carries the rule's name.

Five off-centre runs of 245 moved a published exponent from .37 to .45, so exclusion is never silent: the same fit is
shown with and without. It refuses to exclude a run for being better than the law.
"""

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.bootstrap import bootstrap, interval
from kleiber.studies.fit import Fit, fit
from kleiber.studies.law import Array, Law
from kleiber.studies.table import Table

RULES = ("diverged", "undertuned")
GOOD = ("finished",)
WORSE = 0.05  # a run beaten by more than this by one with no more parameters and tokens did not train
MIN_ROWS, MIN_GAP, ROBUST_SD, MAX_SHARE = 12, 0.02, 6.0, 0.15

Mask = NDArray[np.bool_]


def diverged(table: Table, law: Law) -> Mask:
    """Runs whose status is not finished, and runs with a loss 5 % above one with at most the same N and D.

    The second holds for laws of N and D only: repeated data, experts or mixtures may rightly lose to a smaller run.
    """
    out = np.zeros(len(table), dtype=bool)
    if "status" in table.frame.columns:
        out |= ~table.frame["status"].astype(str).isin(GOOD).to_numpy(dtype=bool)
    if set(law.inputs) == {"N", "D"}:
        N, D, loss = (table.columns[name] for name in ("N", "D", "L"))
        smaller = (N[None] <= N[:, None]) & (D[None] <= D[:, None])
        best = np.where(smaller, loss[None], np.inf).min(1)
        out |= loss - best > WORSE * np.abs(best)
    return out


def undertuned(table: Table, law: Law, **options) -> Mask:
    """Runs more than 6 robust sd and 2 % above a Huber fit (delta 1e-3) of all rows, when there are 12 or more of them.

    Above only: a badly set learning rate raises the loss. If more than 15 % of the rows qualify the law is wrong, not
    the runs, and none is excluded.
    """
    none = np.zeros(len(table), dtype=bool)
    if len(table) < max(MIN_ROWS, 2 * len(law.params)):
        return none
    robust = fit(law, table.inputs(law), table.target, "huber", space=options.get("space"))
    residuals = -robust.residuals  # observed above the law is positive
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    relative = table.target / robust.predict(table.inputs(law)) - 1
    out = (residuals > ROBUST_SD * max(spread, 1e-12)) & (relative > MIN_GAP)
    return out if out.mean() <= MAX_SHARE else none


def exclude(table: Table, law: Law, rules: tuple[str, ...] = RULES, space: str | None = None) -> Table:
    """The table after the rules, in order, with every excluded row recorded under its rule."""
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise ValueError(f"--exclude {unknown[0]!r}: one of {', '.join(RULES)}, or none")
    if "diverged" in rules:
        table = table.drop(diverged(table, law), "diverged")
    if "undertuned" in rules and len(table) >= len(law.params):
        table = table.drop(undertuned(table, law, space=space), "undertuned")
    gone = [entry for entry in table.excluded if entry["rule"] in rules]
    if len(table) < len(law.params) and gone:
        raise ValueError(
            f"{len(table)} rows left for the {len(law.params)} parameters of {law.name!r}: {len(gone)} went by the "
            f"rule {gone[0]['rule']} (diverged: a status other than {GOOD[0]}, or a loss {WORSE:.0%} above that of a "
            "smaller run); --exclude none keeps them"
        )
    return table


def with_and_without(
    kept: Fit, table: Table, law: Law, level: float = 0.9, draws: int = 200, seed: int = 0
) -> list[dict[str, object]]:
    """The with/without table: parameters and derived quantities as {value, lo, hi}, on all rows and on the kept.

    Bootstrap intervals, null where no residual is left to measure noise by.
    """
    problem = kept.problem
    every = fit(law, table.inputs(law), table.target, problem.loss_fn, problem.delta, problem.space)
    rows: list[dict[str, object]] = []
    for label, found in (("with", every), ("without", kept)):
        points = {**found.params, **{name: float(value[0]) for name, value in law.derive(found.values).items()}}
        spread: dict[str, Array] = {}
        if np.isfinite(found.noise):
            sample = bootstrap(found, draws, seed)
            spread = {**dict(zip(law.params, sample.values.T, strict=True)), **sample.derive()}
        row: dict[str, object] = {"excluded_rows": label, "n": found.problem.num_rows}
        for name, value in points.items():
            lo, hi = interval(spread[name], level) if name in spread else (None, None)
            row[name] = {
                "value": value,
                "lo": None if lo is None else float(lo),
                "hi": None if hi is None else float(hi),
            }
        rows.append(row)
    return rows
