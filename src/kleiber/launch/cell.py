"""What a study's runs.jsonl.gz means to its sweep: which cells are finished, and which of them have to run once more.

The archive keeps numbers and no weights. A cell that it holds as finished is not run; only where a cell that is still
to run starts from it, it is trained again, with the same seed and so to the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kleiber.config.check import check
from kleiber.records import archive, folder
from kleiber.records.catalog import Run, archive_runs, archived_runs
from kleiber.records.folder import config_hash
from kleiber.records.summary import read

if TYPE_CHECKING:
    pass

OF_THE_SWEEP = ("root", "name", "launcher", "logger", "dry_run")  # what a cell that runs again takes from this start


def archived_by_hash(study: Path) -> dict[str, Run]:
    """The finished runs of a study's archive by the hash of their configs; what ended in the folder is added first.

    Hashes are computed anew: the cells of a study that was moved, or begun by an earlier version, are its cells here.
    """
    archive_runs(study)
    runs = [run for run in archived_runs(study / archive.NAME) if run.status == "finished"]
    return {config_hash({**run.config, "root": str(study.parent), "name": study.name}): run for run in runs}


def placed(cell: Cell, archived: Mapping[str, Run]) -> Cell:
    """The cell, under the name that its run has in the archive: the same overrides may have been worded otherwise."""
    run = archived.get(config_hash(cell.config)) if archived else None
    return cell if run is None else replace(cell, folder=run.folder)


def train_bases(cells: Sequence[Cell], archived: Mapping[str, Run], launcher: Launcher) -> None:
    """Trains again the archived runs from which `cells` start and whose weights are not here."""
    needing = {name: cell for cell in cells for name in runs_named(cell.config, f"{cell.folder.parent}{os.sep}")}
    bases = [
        replace(needing[run.name], folder=run.folder, config=again(run, needing[run.name]), overrides=run.overrides)
        for run in archived.values()
        if run.name in needing and folder.status(run.folder) != "finished"
    ]
    if not bases:
        return
    train_bases(bases, archived, launcher)
    print(
        f"training {len(bases)} finished runs again: other cells start from their weights, which are not here",
        flush=True,
    )
    for base in bases:
        check(base.config)
        folder.write_config(base.folder, base.config, base.overrides)
    launcher.run(bases)


def again(run: Run, needing: Cell) -> dict[str, Any]:
    """The config of an archived run that is to be trained here, for a cell that starts from it."""
    return {**run.config, **{key: needing.config[key] for key in OF_THE_SWEEP}, "resume": "auto"}


def runs_named(value: Any, study: str) -> set[str]:
    """Names of the runs whose folders a config leads into, of those that lie in `study`."""
    if isinstance(value, str):
        return {value.removeprefix(study).split(os.sep)[0]} if value.startswith(study) else set()
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for entry in below for name in runs_named(entry, study)}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, composed and checked."""

    folder: Path
    config: dict[str, Any]
    overrides: list[str]

    @property
    def devices(self) -> int:
        return self.config["trainer"].get("devices", 1)

    @property
    def accelerator(self) -> str:
        return self.config["trainer"].get("accelerator", "cpu")

    @property
    def threads(self) -> int | None:
        return self.config["trainer"].get("threads")


class Launcher(Protocol):
    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Runs the cells; exit codes by folder. A cell that was not started is absent.

        Raises Preempted when the sweep itself was asked to end, once all that it had started have.
        """
        ...


def line(done: int, total: int, where: Path, code: int, seconds: float, status: str | None = None) -> str:
    """What a launcher prints when a cell has ended: the loss on its own task, or the first line of what went wrong."""
    summary = read(where / "summary.json") or {}
    stage = (summary.get("stages") or [{}])[-1]
    own = {f"val/{task}/loss" for task in stage.get("tasks") or ()}
    losses = [f"{value:.4f}" for key, value in (stage.get("metrics") or {}).items() if key in own]
    error = (summary.get("error") or "").partition("\n")[0]
    told = error if code else f"loss {' '.join(losses)}" if losses else ""
    return f"[{done}/{total}] {status or folder.status(where):8} {where.name}  {seconds:.1f} s  {told}".rstrip()
