"""Panels for tests: declared studies, planted runs, and claims by what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fake_run import fake_run

from kleiber.config.compose import config_files
from kleiber.config.targets import build
from kleiber.records.catalog import Run
from kleiber.records.files import read_yaml
from kleiber.studies.claims import Result
from kleiber.studies.study import Findings, Study
from kleiber.types import Json

LOSS = "val/docs/loss"


def declared(name: str, **options: Any) -> Study:
    """A declared study by its name, with other values of some options."""
    return build({**deepcopy(study_node(name)), **options})


@cache
def study_node(name: str) -> Json:
    """What the config of a study says of its report."""
    node = read_yaml(config_files()[f"study/{name}"])
    assert isinstance(node, dict)
    return node["study"]


def plant(
    folder: Path, name: str, metrics: Mapping[str, float], seed: int = 0, *, arm: str | None = None,
    stage: Mapping[str, Any] | None = None, R: Mapping[str, Any] | None = None, **config: Any,
) -> None:  # fmt: skip
    """Writes a run with metrics; `stage` are further values of its stage, `config` of its config."""
    node = {"seed": seed, "optimizer": {"lr": 0.01}, "study": {"arm": arm}, **config}
    fake_run(folder / f"{name}-{seed}", [{"metrics": dict(metrics), **(stage or {})}], config=node, seed=seed, R=R)


def with_metrics(run: Run, metrics: Mapping[str, float | None]) -> Run:
    """The run with other metrics of its last stage; None removes one."""
    summary = deepcopy(run.summary)
    values = {**summary["stages"][-1]["metrics"], **metrics}
    summary["stages"][-1]["metrics"] = {name: value for name, value in values.items() if value is not None}
    return replace(run, summary=summary)


def claim(findings: Findings, measure: str, against: Mapping[str, object] | None = None, **of: object) -> Result:
    """The only claim about a measure whose sides have these values of keys."""
    same = [
        result
        for result in findings.claims
        if result.claim.measure == measure
        and all(result.claim.of.get(key) == value for key, value in of.items())
        and (against is None or dict(result.claim.against or {}) == against)
    ]
    (result,) = same
    return result


def decisions(findings: Findings) -> list[str]:
    """The decisions of all claims in order."""
    return [str(result.decision) for result in findings.claims]


def rows(findings: Findings, title: str, **values: object) -> list[Json]:
    """The rows of a table that have these values."""
    return [row for row in findings.tables[title] if all(row[key] == value for key, value in values.items())]


def row(findings: Findings, title: str, **values: object) -> Json:
    """The only row of a table that has these values."""
    (only,) = rows(findings, title, **values)
    return only


def draw_all(findings: Findings) -> dict[str, Json]:
    """All figures as dictionaries, by name."""
    return {name: draw().to_dict() for name, draw in findings.figures.items()}
