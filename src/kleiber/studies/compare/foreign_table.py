"""Tables of runs that kleiber did not train, read as arms: columns by role, budgets, seeds, and what is not testable.

A table has a row for each run: its arm, its seed and a value. Learning rates, sizes, tokens, FLOPs and seconds are
further columns. The guards of our studies hold for the columns that are mapped: arms with rates have to be tuned, and
budgets have to be equal. What a table does not contain cannot be guarded, and is a caveat.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import pandas as pd

from kleiber.config.errors import Status, listed
from kleiber.config.nested import flatten
from kleiber.records.catalog import read_runs
from kleiber.studies.claims import Claim, Levels, Question, read_claims
from kleiber.studies.compare.arms import Arm, Unready, arm_from_rows, rows_by_budget
from kleiber.studies.compare.differences import GROWING, Ladders, arm_named, name_with_keys, question
from kleiber.studies.compare.measures import Measures
from kleiber.studies.compare.study import Compare, decide_arms
from kleiber.studies.decision import QUANTITIES
from kleiber.studies.laws.filters import check_roles, column_of
from kleiber.studies.laws.table import numbers_of
from kleiber.studies.laws.table import read as read_table
from kleiber.studies.study import Findings
from kleiber.types import Json, Row
from kleiber.types.score import Better, Score

NEEDED, NUMBERS = ("arm", "value"), ("lr", "size", "tokens", "flops", "seconds")
ROLES = (*NEEDED, "seed", *NUMBERS)
FACTS = {"size": "params", "tokens": "tokens", "flops": "flops", "seconds": "train_s"}  # facts of an arm by role
BUDGETS = ("tokens", "flops")  # roles of which an arm may have several values, the first of which is its budget
STATES = ("status", "state")  # columns of W&B and of kleiber that say how a run ended
UNFINISHED = (
    "crashed", "failed", "killed", "running", "pending", "preempted", "preempting", "interrupted", "missing",
)  # fmt: skip
NOT_TESTABLE = "not testable: "
NO_LR = 1.0  # stands for the learning rate of runs of a table without any


@dataclass(frozen=True)
class ForeignTable:
    """The rows of a table by role.

    rows     arm, seed, value and the mapped numbers of each run
    columns  column by role
    problem  why the rows as a whole decide nothing; "" where they can
    """

    rows: Sequence[Json]
    columns: Mapping[str, str]
    problem: str = ""
    caveats: Sequence[Json] = field(default_factory=tuple)

    @property
    def sizes(self) -> list[float]:
        """The sizes, where some arm has several of them; they are then a key of the claims, not a fact of an arm."""
        by_arm: dict[str, set[float]] = {}
        for row in self.rows if "size" in self.columns else ():
            by_arm.setdefault(row["arm"], set()).add(row["size"])
        several = any(len(sizes) > 1 for sizes in by_arm.values())
        return sorted(set.union(*by_arm.values())) if several else []

    @property
    def equal(self) -> str | None:
        """What is held equal where a claim does not say it: the first of tokens, FLOPs and seconds that is mapped."""
        return next((name for name in GROWING if name in self.columns), None)


def read_foreign(source: Path | pd.DataFrame, columns: Mapping[str, str]) -> ForeignTable:
    """Reads a table of runs, or the runs in a folder.

    columns  column by role, `arm` and `value` among them

    Raises ValueError for another role, a missing column, and a cell that is not a number.
    """
    check_roles(columns, ROLES)
    for role in NEEDED:
        if role not in columns:
            raise ValueError(f"--map needs {role}=COL, the column of the {role} of each run")
    frame = source if isinstance(source, pd.DataFrame) else read_frame(source, columns)
    frame = frame.reset_index(drop=True)
    names = {role: column_of(frame, column, f"--map {role}={column}") for role, column in columns.items()}
    numbers = {role: numbers_of(frame, names[role]) for role in ("value", *NUMBERS) if role in names}
    rows, unfinished = [], unfinished_rows(frame)
    for at in range(len(frame)):
        row: Json = {role: float(values[at]) for role, values in numbers.items()}
        row |= {"arm": text_of(frame[names["arm"]].iloc[at]), "at": at}
        row["seed"] = seed_of(frame[names["seed"]].iloc[at]) if "seed" in names else at
        if row["arm"] is None:
            raise ValueError(f"--map arm={names['arm']}: row {at} has no value; correct or remove the row")
        rows.append(row)
    waiting = f"{len(unfinished)} of {len(rows)} runs have not finished (rows {listed([*map(str, unfinished)])})"
    return ForeignTable(rows, names, waiting if unfinished else table_problem(rows, names))


def read_frame(source: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Returns the rows of a file or folder; of kleiber's runs also the keys of their configs that are mapped."""
    frame = read_table(source)
    missing = [name for name in columns.values() if name not in frame.columns]
    if source.is_dir() and missing:
        configs = {run.name: flatten(run.config) for run in read_runs(source)}
        for name in missing:
            values = {run: config[name] for run, config in configs.items() if name in config}
            if values and "run" in frame.columns:
                frame = frame.assign(**{name: [values.get(run) for run in frame["run"]]})
    return frame


def text_of(value: object) -> str | None:
    """Returns the name of an arm; None for an empty cell. Whole numbers have no fraction, as a csv with gaps adds."""
    if value is None or value != value:
        return None
    return f"{value:g}" if isinstance(value, float) else str(value)


def seed_of(value: object) -> object:
    """Returns a seed: a number as such, so that 1 and 1.0 are equal, other labels as text; None for an empty cell."""
    if value is None or value != value:
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def unfinished_rows(frame: pd.DataFrame) -> list[int]:
    """Returns the rows of runs that crashed, were killed or still run, where a column says so.

    A run that diverged has ended: its value is missing, and it is the worst of its arm.
    """
    name = next((name for name in frame.columns if str(name).lower() in STATES), None)
    if name is None:
        return []
    states = frame[name].astype(str).str.lower()
    return [at for at, state in enumerate(states) if state in UNFINISHED]


def table_problem(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Returns why rows decide nothing: no seeds, or a number of a mapped column is missing; "" otherwise."""
    if "seed" not in columns:
        return "the table has no seeds; add --map seed=COL"
    empty = [row["at"] for row in rows if row["seed"] is None]
    if empty:
        return f"row {empty[0]} has no seed (column {columns['seed']})"
    for role in NUMBERS:
        bad = [row["at"] for row in rows if role in columns and not (0 < row[role] < math.inf)]
        if bad:
            return f"row {bad[0]} has no {role} > 0 (column {columns[role]})"
    return ""


def ladders_of(table: ForeignTable, higher_is_better: bool, scores: Measures) -> dict[str, list[Arm]]:
    """Returns each arm at each of its budgets, as `kleiber.studies.compare.arms.read_ladders` does for our runs.

    Raises ValueError for two runs of an arm with equal seed, rate and budget, and for fewer than two arms.
    """
    measure, tuned = table.columns["value"], "lr" in table.columns and not table.problem
    parts: dict[str, list[Json]] = {}
    for row in table.rows:
        sized = {"size": row["size"]} if table.sizes else {}
        parts.setdefault(name_with_keys(row["arm"], sized), []).append(row)
    if len(parts) < 2:
        raise ValueError(f"--map arm={table.columns['arm']}: the table has {len(parts)} arm, and two are needed")
    along = next((role for role in BUDGETS if role in table.columns and not table.problem), None)
    ladders: dict[str, list[Arm]] = {}
    for name, part in parts.items():
        rows = [
            {**row, measure: row["value"], "lr": row["lr"] if tuned else NO_LR, "run": row["at"],
             "status": Status.FINISHED if math.isfinite(row["value"]) else Status.DIVERGED}
            for row in part
        ]  # fmt: skip
        budgets = [rows] if along is None else [*rows_by_budget(rows, along).values()] or [rows]
        ladders[name] = []
        for ended in budgets:
            refuse_repeated(name, ended, table.columns)
            arm = arm_from_rows(name, ended, measure, higher_is_better, scores)
            facts = {FACTS[role]: median_of(ended, role) for role in FACTS if role in table.columns}
            measured = {fact: value for fact, value in facts.items() if value is not None}
            ladders[name].append(replace(arm, facts=measured, untuned_because=arm.untuned_because if tuned else ""))
    return ladders


def median_of(rows: Sequence[Row], role: str) -> float | None:
    """Returns the median of a number of the runs of an arm; None where one of them has none."""
    values = [row[role] for row in rows]
    return statistics.median(values) if values and all(map(math.isfinite, values)) else None


def refuse_repeated(arm: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Raises ValueError for two runs of an arm at one budget with equal seed and rate, since only one would be read."""
    there: dict[object, int] = {}
    for row in rows:
        first = there.setdefault((row["seed"], row["lr"]), row["at"])
        if first != row["at"] and row["seed"] is not None:
            varied = [role for role in ("tokens", "size", "lr") if role not in columns]
            raise ValueError(
                f"rows {first} and {row['at']} are of the same run: {arm}, seed {row['seed']}. Keep one row for each "
                f"run, or map what differs between them ({', '.join(f'{role}=COL' for role in varied) or 'arm=COL'})"
            )


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked of a table.

    claims    nodes of claims; without any, every arm is better than the baseline
    baseline  the arm that others are compared with; None for the first
    better    which values are better: lower or higher
    equal     what is held equal; None for what the table has
    """

    claims: Sequence[Mapping[str, object]] = ()
    baseline: str | None = None
    better: Better = "lower"
    equal: str | None = None
    level: float = 0.9
    variance: str = "moderated"

    def __post_init__(self) -> None:
        if self.better not in get_args(Better)[:2]:
            raise ValueError(f"--better {self.better} must be lower or higher")
        if self.claims and self.baseline is not None:
            raise ValueError(f"--baseline {self.baseline} makes the claims, and --claims states them: remove one")


def claims_of(table: ForeignTable, options: Options) -> list[Claim]:
    """Returns the claims about a table. Raises ValueError for an arm that it does not have, and another measure."""
    arms = list(dict.fromkeys(row["arm"] for row in table.rows))
    levels: Levels = {"arm": arms, **({"size": table.sizes} if table.sizes else {})}
    baseline = arms[0] if options.baseline is None else options.baseline
    if baseline not in arms:
        raise ValueError(f"--baseline {baseline} must be one of the arms {listed(arms)}")
    each = {"size": "all"} if table.sizes else {}
    better = [{"arm": arm, "against": baseline, "each": each} for arm in arms if arm != baseline]
    measure, equal = table.columns["value"], options.equal or table.equal
    defaults = {"measure": measure, "equal": equal, "direction": options.better}
    claims = read_claims(options.claims or better, "claims", defaults, levels)
    names = {name_with_keys(row["arm"], {"size": row["size"]} if table.sizes else {}) for row in table.rows}
    for at, claim in enumerate(claims):
        if claim.measure != measure:
            raise ValueError(f"claims[{at}].measure={claim.measure} must be {measure}, the value of --map")
        if claim.equal not in (None, *QUANTITIES):
            raise ValueError(f"claims[{at}].equal={claim.equal} must be one of {', '.join(QUANTITIES)}")
        for absent in (arm_named(side) for _, side in claim.sides if arm_named(side) not in names):
            if options.claims:
                raise ValueError(f"claims[{at}]: {absent} is not an arm of the table; name some of {listed([*names])}")
    return claims


def question_of(claim: Claim, ladders: Ladders, table: ForeignTable) -> Question:
    """Returns a claim with what a table says about it; the reason why that is nothing begins with NOT_TESTABLE."""
    read = question(claim, ladders, Unready())
    names = [arm_named(side) for _, side in claim.sides]
    seeds = [set(ladders[name][-1].best_values) for name in names if name in ladders]
    worst = [name for name in names if name in ladders and not finite(ladders[name][-1])]
    problem = table.problem
    if not problem and worst:
        problem = f"a run of {worst[0]} has no finite value"
    if not problem and not read.problem and len(read.values) < 2:
        common = len(set.intersection(*seeds)) if seeds else 0
        problem = f"{' and '.join(names)} have {common} seed{'s' * (common != 1)} in common, and two are needed"
    reason = problem or read.problem
    tuned = read.tuned if "lr" in table.columns else None
    return replace(read, problem=f"{NOT_TESTABLE}{reason}" if reason else "", tuned=tuned)


def finite(arm: Arm) -> bool:
    """Returns whether no run of an arm at its best rate diverged or has no value."""
    return all(map(math.isfinite, arm.best_values.values()))


METHODS = (
    "The runs of a table were compared as the table has them. Differences are means over the seeds that both arms "
    "have, with moderated t intervals (Smyth 2004, doi:10.2202/1544-6115.1027) that hold together at a confidence of "
    "{level} over {claims} claims, by the multivariate t of their contrasts, and are paired by seed where the seed "
    "explains part of the variance or the runs are few."
)


def compare_table(table: ForeignTable, options: Options) -> Findings:
    """Compares the arms of a table and decides the claims about them.

    Raises ValueError for claims that do not fit the table, and for fewer than two arms.
    """
    measure, tuned = table.columns["value"], "lr" in table.columns
    study = Compare(measure=measure, level=options.level, variance=options.variance)  # type: ignore[arg-type]
    scores = Measures()
    scores[measure] = Score(math.nan, better=options.better, label=measure)
    claims = claims_of(table, options)
    ladders = ladders_of(table, options.better == "higher", scores)
    questions = [question_of(claim, ladders, table) for claim in claims]
    equals = dict.fromkeys(claim.equal for claim in claims)
    mapped = [name for name in QUANTITIES if {"params": "size"}.get(name, name) in table.columns]
    findings = decide_arms(
        questions, claims, ladders, study, scores, dict(zip(ladders, ladders, strict=True)),
        [*dict.fromkeys([*equals, *mapped])],
    )  # fmt: skip
    caveats = [*findings.caveats, *missing_columns(table)]
    if tuned:
        return replace(findings, caveats=caveats)
    tables = {
        title: [{key: value for key, value in row.items() if key not in LEFT_OUT} for row in rows]
        for title, rows in findings.tables.items()
    }
    methods = METHODS.format(level=f"{options.level:.0%}", claims=len(claims))
    return replace(findings, caveats=caveats, tables=tables, methods=methods)


LEFT_OUT = ("best lr", "tuned", "why not", "at the vertex", "vertex lr")  # columns of tables without learning rates


def missing_columns(table: ForeignTable) -> list[Json]:
    """Returns a caveat for each guard that a table cannot be held to, because it lacks the column."""
    caveats = []
    if "lr" not in table.columns:
        text = "the table has no learning rates: each arm is compared with the settings that it was run with"
        caveats.append({"code": "rates", "text": text})
    if table.equal is None:
        text = "the table has no tokens, FLOPs or seconds: budgets may differ between the arms"
        caveats.append({"code": "budgets", "text": text})
    return caveats
