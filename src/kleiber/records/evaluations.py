"""The scores of evaluations in summary.json, as eval/<name>/<data>/<metric> among the metrics of a stage."""

from __future__ import annotations

from pathlib import Path

from kleiber.config.errors import Status
from kleiber.records.files import DamagedFile, read_json, write_json
from kleiber.records.folder import status, without_nulls
from kleiber.records.summary import Scores
from kleiber.records.summary_file import SUMMARY, read_summary
from kleiber.types import Config


def add_metrics(folder: Path, stage: str, scores: Scores, replaced: str | None = None) -> None:
    """Adds scores to the metrics of a finished stage in summary.json, where there is such a file.

    replaced  prefix of earlier metrics that are removed, such as eval/perplexity/
    """
    values = read_summary(folder)
    if values is None:
        return
    for record in values["stages"]:
        if record["name"] == stage:
            kept = {
                key: value
                for key, value in record["metrics"].items()
                if replaced is None or not key.startswith(replaced)
            }
            record["metrics"] = {**kept, **scores}
    write_json(folder / SUMMARY, values)


def is_complete(folder: Path, config: Config) -> bool:
    """Whether a run is finished and has the scores of all evaluations that `config` asks for."""
    return status(folder) == Status.FINISHED and not missing_evaluations(folder, config)


def missing_evaluations(folder: Path, config: Config) -> list[str]:
    """Names of the evaluations of a config of which a run's last stage has no scores, or scores with other settings.

    The evaluations of a run are no part of its identity, so a run with others is the same run.
    """
    nodes = {name: node for name, node in (config.get("evals") or {}).items() if node is not None}
    stages = (read_summary(folder) or {}).get("stages")
    metrics = stages[-1]["metrics"] if stages else {}
    return [
        name
        for name, node in nodes.items()
        if not any(key.startswith(f"eval/{name}/") for key in metrics) or _has_other_settings(folder, name, node)
    ]


def _has_other_settings(folder: Path, name: str, node: Config) -> bool:
    """Whether the results of an evaluation were measured with other settings than those of `node`."""
    try:
        settings = read_json(folder / "evals" / f"{name}.json").get("settings")
    except DamagedFile:
        return False
    return isinstance(settings, dict) and without_nulls(settings) != without_nulls(node)
