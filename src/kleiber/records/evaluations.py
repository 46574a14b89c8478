"""The scores of evaluations in summary.json, as eval/<name>/<data>/<metric> among the metrics of a stage."""

from __future__ import annotations

from pathlib import Path

from kleiber.config.errors import Status
from kleiber.records.files import write_json
from kleiber.records.folder import status
from kleiber.records.summary import Scores
from kleiber.records.summary_file import SUMMARY, read_summary
from kleiber.types import Config


def add_metrics(folder: Path, stage: str, scores: Scores) -> None:
    """Adds scores to the metrics of a finished stage in summary.json, where there is such a file."""
    values = read_summary(folder)
    if values is None:
        return
    for record in values["stages"]:
        if record["name"] == stage:
            record["metrics"] = {**record["metrics"], **scores}
    write_json(folder / SUMMARY, values)


def is_complete(folder: Path, config: Config) -> bool:
    """Whether a run is finished and has the scores of all evaluations that `config` asks for."""
    return status(folder) == Status.FINISHED and not missing_evaluations(folder, config)


def missing_evaluations(folder: Path, config: Config) -> list[str]:
    """Names of the evaluations of a config of which a run's last stage has no scores, because it was trained without.

    The evaluations of a run are no part of its identity, so a run with others is the same run.
    """
    names = [name for name, node in (config.get("evals") or {}).items() if node is not None]
    stages = (read_summary(folder) or {}).get("stages")
    metrics = stages[-1]["metrics"] if stages else {}
    return [name for name in names if not any(key.startswith(f"eval/{name}/") for key in metrics)]
