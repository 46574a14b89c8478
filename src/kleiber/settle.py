"""The last word on a run that could not write its own: no run that was started is left without a summary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from kleiber.folder import read_config, read_overrides, status
from kleiber.summary import Summary, cpu_name


def settle(folder: Path, verdict: Literal["failed", "killed", "preempted"], error: str, over: str = "") -> None:
    """Writes status and error, unless the run has written how it ended, and that was not `over`."""
    if status(folder, held=False) not in ("missing", "killed", over):
        return
    summary = Summary(folder)
    if "run_id" not in summary.values:
        summary.start(**facts(folder))
    if summary.values["status"] in ("running", over):
        summary.update(status=verdict, error=error)


def facts(folder: Path) -> dict[str, Any]:
    """What the config alone tells of a run that never came to tell it."""
    config = read_config(folder)
    trainer = config["trainer"]
    return {
        "run_id": os.urandom(6).hex(),
        "name": config["name"],
        "study": config["name"] if config.get("study") else None,
        "config_hash": folder.name.rsplit("-", 1)[-1],
        "overrides": read_overrides(folder),
        "seed": config["seed"],
        "machine": {
            "cpu": cpu_name(),
            "threads": trainer.get("threads") or 1,
            "device": trainer.get("accelerator", "cpu"),
            "world_size": trainer.get("devices", 1),
        },
    }
