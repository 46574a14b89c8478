"""Reads curves of runs for the law of schedules: rows of run, step, learning rate and loss, or folders of runs.

Every refusal names the row and the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kleiber.records import catalog
from kleiber.records.catalog import Run
from kleiber.studies.laws import table
from kleiber.studies.laws.filters import check_roles, column_of, keep
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.schedules import warmup_length
from kleiber.studies.laws.table import Table, label, numbers_of
from kleiber.types import Json

ROLES = ("run", "step", "lr", "loss")
LOSS, RATE = "train/loss", "train/lr"  # of our own runs
FEWEST = 10  # losses of a curve
SAME = 0.01  # relative difference of learning rates that counts as none


@dataclass(frozen=True)
class Curve:
    """One run: steps, learning rates and losses of all rows, of which the law describes those from `start` on.

    start  the first row with a loss after the warm-up
    """

    name: str
    steps: Array
    rates: Array
    losses: Array
    start: int = 0

    @property
    def at(self) -> Array:
        """Steps that have a loss."""
        return self.steps[self.start :][self.measured]

    @property
    def measured(self) -> np.ndarray:
        """Mask of the rows from `start` on that have a loss."""
        return np.isfinite(self.losses[self.start :])

    @property
    def observed(self) -> Array:
        """The losses at the steps `at`."""
        return self.losses[self.start :][self.measured]

    def is_same_schedule(self, other: Curve) -> bool:
        """Whether two runs have the same learning rates, as far as both go."""
        last = min(self.steps[-1], other.steps[-1])
        common = self.steps[(self.steps <= last) & (self.steps >= other.steps[0])]
        if not len(common):
            return False
        rates, others = (np.interp(common, each.steps, each.rates) for each in (self, other))
        return bool(np.abs(rates - others).max() <= SAME * max(self.rates.max(), other.rates.max()))


def select_curves(
    source: Path | pd.DataFrame, columns: Mapping[str, str], where: Sequence[str], measured: bool = True
) -> Table:
    """Returns the rows of curves: the numbers of the runs, steps, learning rates and losses L.

    columns   column by role: run, step, lr and loss
    measured  whether the table must have a loss; without one, all losses are NaN

    Raises ValueError for an unknown role, a missing column, and what `check_values` refuses.
    """
    from_runs = isinstance(source, Path) and source.is_dir()
    if columns.get("L"):
        columns = {**{role: name for role, name in columns.items() if role != "L"}, "loss": columns["L"]}
    check_roles(columns, ROLES)
    if from_runs:
        frame = rows_of_runs(catalog.read_runs(Path(str(source))), columns.get("loss", LOSS))
        columns = dict(zip(ROLES, ROLES, strict=True))
    else:
        frame = source if isinstance(source, pd.DataFrame) else table.read(source)
    frame = frame.reset_index(drop=True)
    roles = {role: columns.get(role, role) for role in ROLES}
    if not measured and roles["loss"] not in frame.columns:
        frame = frame.assign(**{roles["loss"]: np.nan})
    for role, name in roles.items():
        column_of(frame, name, f"--map {role}={name}" if role in columns else f"add --map {role}=COL")
    names = frame[roles["run"]]
    if (empty := names.isna().to_numpy(dtype=bool)).any():
        raise ValueError(f"column {roles['run']!r}: row {int(np.argmax(empty))} has no value: name the run of each row")
    codes, _ = pd.factorize(names)
    numbers = {role: numbers_of(frame, roles[role]) for role in ("step", "lr", "loss")}
    values = {"run": codes.astype(np.float64), "step": numbers["step"], "lr": numbers["lr"], "L": numbers["loss"]}
    kept = Table(frame, values, {**roles, "L": roles["loss"]}, whole=frame)
    for text in where:
        kept = kept.drop(~keep(kept.frame, text, roles), f"where: {text}")
    if not len(kept):
        raise ValueError(f"none of the {len(frame)} rows remains after {', '.join(map(repr, where)) or 'reading'}")
    check_values(kept, gaps=from_runs or not measured)
    return kept


def check_values(rows: Table, gaps: bool) -> None:
    """Raises ValueError, with row and column, for values that no curve can have.

    gaps  whether a loss may be missing after the first one, as where it is logged less often than the rate
    """
    run, step, rate, loss = (rows.columns[name] for name in ("run", "step", "lr", "L"))
    _refuse(rows, "step", ~np.isfinite(step) | (step < 0), "the step {value} must be a finite number >= 0")
    _refuse(rows, "lr", ~np.isfinite(rate), "the learning rate is missing or not finite")
    _refuse(rows, "lr", rate < 0, "the learning rate {value} must be >= 0")
    begun = _has_begun(run, np.isfinite(loss))
    before = (_rank(run, begun) == 0) & (_counts(run, loss) > 0)  # up to the first loss, with it
    _refuse(rows, "lr", (rate == 0) & before, "the learning rate is 0 before the loss starts")
    _refuse(rows, "L", np.isinf(loss) | (loss <= 0), "the loss {value} must be a finite number > 0")
    if not gaps:
        missing = begun & ~np.isfinite(loss)
        _refuse(rows, "L", missing, "the loss is missing: correct the row, or exclude it with --where")


def check_curves(rows: Table) -> None:
    """Raises ValueError, with row and column, for runs whose steps do not increase, and for runs of few losses."""
    run, step, loss = (rows.columns[name] for name in ("run", "step", "L"))
    order = np.argsort(run, kind="stable")
    same = run[order][1:] == run[order][:-1]
    for wrong, text in (
        (np.diff(step[order]) < 0, "the step {value} is smaller than that of the row before it in the same run: sort"),
        (np.diff(step[order]) == 0, "the step {value} is repeated within a run: --map run=COL must name one curve, or"),
    ):
        mask = np.zeros(len(run), dtype=bool)
        mask[order[1:]] = wrong & same
        _refuse(rows, "step", mask, f"{text} remove the rows")
    counts = _counts(run, loss)
    short = (counts > 0) & (counts < FEWEST)
    if short.any():
        fewest = int(counts[short].min())
        text = f"the curve that begins here has {fewest} losses, fewer than {FEWEST}"
        _refuse(rows, "L", counts == fewest, f"{text}: add points, or exclude the run with --where")


def _counts(run: Array, loss: Array) -> np.ndarray:
    """Returns the number of losses of the run of each row."""
    return np.bincount(run.astype(int), np.isfinite(loss))[run.astype(int)]


def _has_begun(run: Array, measured: np.ndarray) -> np.ndarray:
    """Returns the mask of rows at or after the first loss of their run."""
    frame = pd.DataFrame({"run": run, "measured": measured})
    return frame.groupby("run")["measured"].cummax().to_numpy(dtype=bool)


def _rank(run: Array, mask: np.ndarray) -> np.ndarray:
    """Returns how many rows of the mask precede each row in its run."""
    return pd.DataFrame({"run": run, "mask": mask}).groupby("run")["mask"].cumsum().to_numpy() - mask


def _refuse(rows: Table, role: str, wrong: np.ndarray, text: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        value = f"{rows.columns[role][row]:g}"
        raise ValueError(f"column {rows.roles[role]!r}, row {label(rows.frame.index[row])}: {text.format(value=value)}")


def curves_of(rows: Table) -> list[Curve]:
    """Returns the curves of a table, in the order of their first rows. Raises ValueError as `check_curves`."""
    check_curves(rows)
    names = rows.frame[rows.roles["run"]].astype(str).to_numpy()
    curves = []
    for code in dict.fromkeys(rows.columns["run"].tolist()):
        mask = rows.columns["run"] == code
        loss = rows.columns["L"][mask]
        finite = np.isfinite(loss)
        steps, rates = (rows.columns[name][mask] for name in ("step", "lr"))
        start = max(int(np.argmax(finite)) if finite.any() else 0, warmup_length(rates), int(steps[0] == 0))
        curves.append(Curve(str(names[mask][0]), steps, rates, loss, start))
    return curves


def distinct_schedules(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Returns the curves in groups of the same schedule."""
    groups: list[list[Curve]] = []
    for curve in curves:
        group = next((group for group in groups if curve.is_same_schedule(group[0])), None)
        if group is None:
            groups.append([curve])
        else:
            group.append(curve)
    return groups


def rows_of_runs(runs: Sequence[Run], metric: str = LOSS) -> pd.DataFrame:
    """Returns the rows of the curve to each end of each run, of a trunk to each of its branches.

    The columns are run, schedule (such as wsd), seed, step, lr and loss.

    metric  of the loss, as metrics.jsonl names it

    Raises ValueError where no run has logged the metric and a learning rate.
    """
    rows: list[Json] = []
    for run in runs:
        stages = {stage["name"]: stage for stage in run.stages}
        parents = {stage.get("parent") for stage in stages.values()}
        for leaf in [name for name in stages if name not in parents] or [None]:
            rows += _curve_rows(run, stages, leaf, metric, run.name if len(stages) < 2 else f"{run.name}/{leaf}")
    if not any(row["loss"] is not None for row in rows):
        logged = sorted({key for run in runs for row in run.rows for key in row if key.endswith("loss")})
        raise ValueError(
            f"the runs have not logged {metric} and {RATE}; add --map loss=METRIC with one of {', '.join(logged)}"
            if logged
            else "the folder has no run with losses and learning rates in its metrics.jsonl"
        )
    return pd.DataFrame(rows)


def _curve_rows(run: Run, stages: Mapping[str, Json], leaf: str | None, metric: str, name: str) -> list[Json]:
    """Returns the rows of one curve, from the root of the run to the stage `leaf`."""
    path: dict[str | None, float] = {}
    stage, last = leaf, np.inf
    while stage is not None:
        path[stage] = last
        entry = stages[stage]
        branch = entry.get("branch_step")
        stage, last = (entry.get("parent"), min(last, branch)) if branch is not None else (None, last)
    by_step: dict[int, Json] = {}
    for row in run.rows:
        owner = row.get("stage") or (leaf if len(stages) < 2 else None)
        if row["step"] <= path.get(owner, -1.0 if stages else np.inf):
            by_step.setdefault(row["step"], {}).update({key: row[key] for key in (metric, RATE) if key in row})
    steps = sorted(by_step)
    rates = [by_step[step].get(RATE) for step in steps]
    if not any(rates):
        return []
    logged = [step for step, rate in zip(steps, rates, strict=True) if rate is not None]
    filled = np.interp(steps, logged, [rate for rate in rates if rate is not None])
    kind = str((run.config.get("schedule") or {}).get("_target_")).rpartition(".")[2].lower()
    facts = {"run": name, "schedule": kind, "seed": run.config.get("seed")}
    return [
        {**facts, "step": step, "lr": rate, "loss": by_step[step].get(metric)}
        for step, rate in zip(steps, filled.tolist(), strict=True)
    ]
