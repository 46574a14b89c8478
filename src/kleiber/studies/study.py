"""The base of all studies: their findings, options and headlines, and the content of findings.json.

`analyse(runs)` turns finished runs into `Findings`. A study reads only what its runs wrote, and every estimate has an
interval or says why it has none. Figures are functions, since drawing needs the extra `report`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kleiber.records.catalog import Run, counts, frame
from kleiber.studies.designs.sizes import PlannedPoint
from kleiber.types import Json, Row

CARRIED_BY = {"A": ["N"], "alpha": ["N"], "B": ["D"], "beta": ["D"]}  # inputs that identify a parameter, else all
Figures = dict[str, Callable[[], Any]]  # functions that draw an altair chart, by the name of its file


@dataclass(frozen=True)
class Findings:
    """What a study found in its runs.

    headline  one sentence that answers the question of the study, with its number and interval
    verdicts  each with at least code, level and text; the level is refuse, warn or note
    tables    rows of plain values by title
    figures   functions that draw an altair chart, by the name of its file
    law       the content of laws.json; None where the study fits no law
    text      lines of the report below the figures
    methods   a paragraph for a paper, with sources
    """

    headline: str
    verdicts: Sequence[Row] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)
    law: Json | None = None
    text: Sequence[str] = ()
    methods: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The base of all studies, the choices of the config group `study`, with the options of every study.

    The sweeper reads the options to plan cells; `analyse` takes all runs that it is given.

    max_cells  starts only this many cells, the first ones of the plan
    seeds      number of seeds, in place of the design's own
    """

    max_cells: int | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_cells", self.max_cells), ("seeds", self.seeds)):
            if value is not None and value < 1:
                raise ValueError(f"study.{name}={value} must be >= 1")

    def analyse(self, runs: Sequence[Run]) -> Findings:
        """The findings of the study in these runs. Raises ValueError where they cannot answer its question."""
        raise NotImplementedError

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Warnings about what these planned points cannot determine, before any of them is trained.

        Raises ValueError where they cannot answer the question of the study at all.
        """
        return []

    def law_inputs(self) -> Sequence[str]:
        """The names of the inputs of the law that the study fits; empty where it fits no law."""
        return ()


@dataclass(frozen=True, kw_only=True)
class EqualTargetStudy(Study):
    """The options of a study that compares methods at one target loss.

    tolerance  relative distance of that loss above the loss it is taken from
    level      confidence level of the intervals
    """

    tolerance: float = 0.02
    level: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level)
        if not self.tolerance >= 0:
            raise ValueError(f"study.tolerance={self.tolerance} must be >= 0")


def check_level(level: float) -> None:
    """Raises ValueError unless `level`, the confidence level of intervals, lies strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"study.level={level} must be > 0 and < 1")


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for every leaf of every finished run, sorted by active parameters, seed and tokens.

    Raises ValueError when no run has finished, and when a run has no validation loss or several.
    """
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        raise ValueError("none of these runs has finished: there is nothing to fit")
    rows = frame(finished)
    if bool(rows["loss"].isna().any()):
        raise ValueError("some runs have no validation loss or several; this study fits the loss on one data set")
    return rows.sort_values(["active", "seed", "tokens"], ignore_index=True)


def missing(runs: Sequence[Run]) -> list[str]:
    """The names of the runs that have not finished, each with its status."""
    return [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]


def not_identified(law: Row) -> list[str]:
    """The names of the parameters that the rows of a law do not determine, from the content of laws.json."""
    return [name for name, parameter in law["params"].items() if not parameter["identified"]]


def headline(law: Row) -> str:
    """The result in a sentence or two: why the law is refused, else what is not identified, and the backtest error."""
    if reason := refusal(law):
        return f"{law['law']} is not established beyond its rows: {reason}."
    tested, missing = extrapolation(law), not_identified(law)
    if not missing:
        return f"{tested[0].upper()}{tested[1:]}."
    names = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
    verb = "are" if len(missing) > 1 else "is"
    needed = f"{verb} not identified by these {law['n']} points; needed: {what_identifies(law, missing)}"
    return f"{names} of {law['law']} {needed}. As a formula for predictions: {tested}."


def refusal(law: Row) -> str:
    """Why the law is refused; "" where it is not."""
    return next((verdict["text"] for verdict in law["verdicts"] if verdict["level"] == "refuse"), "")


def extrapolation(law: Row) -> str:
    """The error of the predictions beyond the highest cut, and how far beyond they go."""
    if not law["backtests"]:
        return f"{law['formula']} fits {law['n']} points to {law['residual_rms']:.2%} rms; no backtest was possible"
    test = max(law["backtests"], key=lambda test: test["cut"])
    naive = min(test["naive"].values())
    many = f"the {test['n_test']} larger points" if test["n_test"] > 1 else "the largest point"
    unit = {"C": "FLOPs", "N": "parameters"}[test["along"]]
    times = law["domain"][test["along"]][1] / test["cut"]
    return (
        f"fitted below {test['cut']:.2g} {unit}, the law predicts {many}, at up to {times:.2g} times that, with a mean "
        f"error of {test['mare']:.2%} (best naive predictor {naive:.2%}) and a bias of {test['bias']:+.2%}"
    )


def what_identifies(law: Row, missing: Sequence[str]) -> str:
    """The data that would identify these parameters: wider ranges of their inputs, more points, less noise."""
    inputs = [name for name in law["domain"] if name != "C"] or ["C"]
    wanted = {needed for name in missing for needed in CARRIED_BY.get(name, inputs)} & set(inputs)
    spans = {name: math.log10(high / low) for name, (low, high) in law["domain"].items() if name in wanted and low > 0}
    ranges = [f"{name} (now {decades:.1f} decades)" for name, decades in spans.items()]
    few = f"more points ({law['n']} for {len(law['params'])} parameters)"
    asked = [*([few] if law["n"] <= 2 * len(law["params"]) else []), f"a wider range of {' and '.join(ranges)}"]
    return " and ".join(asked if ranges else asked[:-1] or [few]) + ", or less noise"


def within_budgets(exponent: str, law: Row) -> str:
    """The headline of a study of the allocation exponent; limited to its budgets where the law is refused."""
    low, high = law["domain"]["C"]
    if reason := refusal(law):
        return (
            f"No exponent is established beyond these budgets, since the law of the same points is refused: {reason}. "
            f"Between {low:.2g} and {high:.2g} FLOPs alone: {exponent[0].lower()}{exponent[1:]}."
        )
    missing = not_identified(law)
    beside = f"; the law of the same points does not identify {', '.join(missing)}" if missing else ""
    return f"{exponent}, from {low:.2g} to {high:.2g} FLOPs{beside}."


def content(findings: Findings, study: str, runs: Sequence[Run]) -> Json:
    """The content of findings.json.

    missing         runs that have not finished
    refused         whether a verdict has the level refuse
    not_identified  parameters of the law that the runs do not determine
    """
    return {
        "schema": "kleiber.findings/1",
        "study": study,
        "headline": findings.headline,
        "runs": counts(runs),
        "missing": missing(runs),
        "seconds": sum(run.summary.get("seconds") or 0 for run in runs),
        "verdicts": [dict(verdict) for verdict in findings.verdicts],
        "tables": {title: [dict(row) for row in rows] for title, rows in findings.tables.items()},
        "laws": "laws.json" if findings.law is not None else None,
        "refused": any(verdict["level"] == "refuse" for verdict in findings.verdicts),
        "not_identified": [] if findings.law is None else not_identified(findings.law),
    }
