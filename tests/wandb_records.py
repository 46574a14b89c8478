"""Reads an offline W&B file back, its history and artifacts too."""

import json
import time
from pathlib import Path
from typing import Any

from processes import PATIENCE

from kleiber.records.wandb_file import read_records, values_of


def read(path: Path, patience: float = PATIENCE) -> dict[str, Any]:
    """Run facts, config, history rows, summary, artifacts by name and exit code (None: the process never finished).

    The client's service writes a finished run a moment after `finish` has returned, at the latest when the process that
    began it ends; inside of that process, as here, it has to be waited for.
    """
    until = time.monotonic() + patience
    while (found := content(path))["exit_code"] is None and time.monotonic() < until:
        time.sleep(0.05)
    return found


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": {}, "exit_code": None}
    found["axes"] = {}
    for record in read_records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found["run"] = {
                    "id": run.run_id,
                    "group": run.run_group,
                    "name": run.display_name,
                    "type": run.job_type,
                    "tags": list(run.tags),
                }
                found["config"].update(values_of(run.config.update))
            case "config":
                found["config"].update(values_of(record.config.update))
            case "history":
                found["history"].append(values_of(record.history.item))
            case "summary":
                found["summary"].update(values_of(record.summary.update))
            case "artifact":
                artifact = record.artifact
                paths = {entry.path for entry in artifact.manifest.contents}
                found["artifacts"][artifact.name] = {
                    "type": artifact.type,
                    "paths": paths,
                    "aliases": list(artifact.aliases),
                    "metadata": json.loads(artifact.metadata or "{}"),
                    "used": artifact.use_after_commit,
                }
            case "metric":
                metric = record.metric
                found["axes"][metric.name or metric.glob_name] = metric.step_metric
            case "exit":
                found["exit_code"] = record.exit.exit_code
    return found
