"""summary.json: what a run was, how it ended and what it measured. Written atomically, at every change of state.

The schema stands in summary.schema.json; analyses read nothing else. It imports no torch.

metrics.jsonl as rows: what a run logged, in order, read without the libraries that wrote it.

It refuses to repair: a last line without its end was being written when the run was cut, and is left out.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = "kleiber.run/1"
PACKAGES = (
    "torch",
    "lightning",
    "hydra-core",
    "torchmetrics",
    "wandb",
    "datasets",
    "transformers",
    "tokenizers",
    "numpy",
)


class Summary:
    """The summary of one run folder; `update` writes it whole. A second start continues the stages of the first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "summary.json"
        self.values: dict[str, Any] = read(self.path) or {}
        self._before = float(self.values.get("seconds") or 0.0)
        self._began = time.monotonic()

    def start(self, **facts: Any) -> None:
        """Marks the run as running; facts are run_id, name, study, config_hash, overrides, seed, machine."""
        first = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "stages": [], "R": None}
        fixed = {"schema": SCHEMA, "status": "running", "error": None, "versions": versions(), **commit()}
        self.values = {**first, **self.values, **fixed, **facts}
        self.update()

    def update(self, **values: Any) -> None:
        self.values.update(values)
        self.values["seconds"] = round(self._before + time.monotonic() - self._began, 3)
        write_json(self.path, self.values)

    def done(self) -> dict[str, dict[str, Any]]:
        """The stages that are finished, by name."""
        return {s["name"]: s for s in self.values.get("stages") or [] if s["status"] == "finished"}

    def put_stage(self, stage: dict[str, Any]) -> None:
        """Adds a stage, or replaces the one of the same name, and writes."""
        others = [s for s in self.values["stages"] if s["name"] != stage["name"]]
        self.update(stages=[*others, stage])


def read(path: Path) -> dict[str, Any] | None:
    """A summary, or None where there is none or what is there is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, values: Any) -> None:
    """Writes beside the target and renames; numbers that are not finite become null, since JSON has none."""
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    part.write_text(json.dumps(_finite(values), indent=1))
    os.replace(part, path)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def cpu_name() -> str:
    """The processor as its maker calls it, where the system says so; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> dict[str, Any]:
    """The commit of the code, and whether it was changed since; nulls where the code is no git checkout.

    Asked once a process: what is imported does not change with the checkout.
    """
    unknown = {"commit": None, "dirty": None}
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # installed: a repository further up would be somebody else's
        return unknown
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        head = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return unknown
    if head.returncode:
        return unknown
    name = head.stdout.strip()
    return {"commit": name.removesuffix("-dirty"), "dirty": name.endswith("-dirty")}


NAME = "metrics.jsonl"
MOST = 200  # rows of a kind that an analysis reads of a stage
PER_EXPERT = "moe/load/"

Row = dict[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's folder; none where it has logged nothing yet."""
    path = folder / NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def having(rows: Sequence[Row], prefix: str) -> list[Row]:
    """The rows with an entry whose name begins so."""
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def condensed(rows: Iterable[Row]) -> list[Row]:
    """The rows that analyses read: of each stage at most MOST of each kind, evenly spread and with the last of them.

    Rows of one kind have the same keys. The load of each single expert is left out: it grows with their number.
    """
    shorter = [{key: value for key, value in row.items() if not key.startswith(PER_EXPERT)} for row in rows]
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(shorter):
        if row.keys() - {"stage", "step"}:
            kinds.setdefault((row.get("stage"), *sorted(row)), []).append(place)
    return [shorter[place] for place in sorted(place for places in kinds.values() for place in spread(places))]


def spread(places: Sequence[int]) -> list[int]:
    """At most MOST of them, evenly spread, the first and the last among them."""
    if len(places) <= MOST:
        return list(places)
    return [places[round(number * (len(places) - 1) / (MOST - 1))] for number in range(MOST)]
