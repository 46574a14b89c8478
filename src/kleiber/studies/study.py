"""What a study found, in the form that a page, a file and a mirror can take: `analyse(runs) -> Findings`.

A study reads only what runs wrote. It reports what is there and names what is missing; no number leaves without an
interval or the words for why it has none. Figures are made when someone looks, since they need the extra `report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from kleiber.records.catalog import Run, counts, frame
from kleiber.studies.designs.sizes import PlannedPoint


@dataclass(frozen=True)
class Findings:
    """headline  one sentence, with its number and interval
    verdicts  {code, level, text} and more; level is refuse, warn or note
    tables    rows of plain values by title
    figures   a function that makes an altair chart, by the name of its file
    law       the content of laws.json, where the study fits one
    text      lines that are printed below the figures
    methods   a paragraph for a paper, with sources
    """

    headline: str
    verdicts: Sequence[Mapping[str, Any]] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    law: Mapping[str, Any] | None = None
    text: Sequence[str] = ()
    methods: str = ""


class Study(Protocol):
    """What `study=` names.

    `max_cells` and `seeds` are for the sweeper, which plans; an analysis takes what is there.
    """

    max_cells: int | None
    seeds: int | None

    def analyse(self, runs: Sequence[Run]) -> Findings: ...
    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]: ...
    def law_inputs(self) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every study can be told.

    max_cells  start no more cells than these, the first ones of the plan
    seeds      seeds of the design, in place of its own
    """

    max_cells: int | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_cells", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"study.{name}={value}: write a number from 1")

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """What the study will not be able to tell from these points, before any of them is trained.

        Raises ValueError where they cannot answer its question at all. A study that only compares refuses nothing.
        """
        return []

    def law_inputs(self) -> Sequence[str]:
        """The inputs of the law that the study fits; none where it fits none."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Tolerant(Options):
    """What a study can be told that compares at a loss which all can reach.

    tolerance  by which share that loss lies above the one it is taken from
    level      of the intervals
    """

    tolerance: float = 0.02
    level: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level)
        if not self.tolerance >= 0:
            raise ValueError(f"study.tolerance={self.tolerance} must be at least 0")


def check_level(level: float) -> None:
    """Raises ValueError for the level of no interval."""
    if not 0 < level < 1:
        raise ValueError(f"study.level={level} must lie in (0, 1)")


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """The finished leaves, in an order that does not depend on the names of folders."""
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        raise ValueError("no finished run here: nothing to fit")
    rows = frame(finished)
    if bool(rows["loss"].isna().any()):
        raise ValueError("runs with no validation loss, or with several: a law of this study is of one data set")
    return rows.sort_values(["active", "seed", "tokens"], ignore_index=True)


def missing(runs: Sequence[Run]) -> list[str]:
    """Cells that a sweep planned and that have no end, with why."""
    return [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]


def not_identified(law: Mapping[str, Any]) -> list[str]:
    """The parameters of a law's record that its rows do not determine."""
    return [name for name, one in law["params"].items() if not one["identified"]]


def content(found: Findings, study: str, runs: Sequence[Run]) -> dict[str, Any]:
    """findings.json: what may be said, in order of weight, and what is missing.

    refused         whether a verdict refuses what the study set out to claim
    not_identified  parameters of its law that the runs do not determine
    """
    return {
        "schema": "kleiber.findings/1",
        "study": study,
        "headline": found.headline,
        "runs": counts(runs),
        "missing": missing(runs),
        "seconds": sum(run.summary.get("seconds") or 0 for run in runs),
        "verdicts": [dict(one) for one in found.verdicts],
        "tables": {title: [dict(row) for row in rows] for title, rows in found.tables.items()},
        "laws": "laws.json" if found.law is not None else None,
        "refused": any(one["level"] == "refuse" for one in found.verdicts),
        "not_identified": [] if found.law is None else not_identified(found.law),
    }
