"""What a study's runs.jsonl.gz means to its sweep: which cells are finished, and which of them have to run once more.

The archive keeps numbers and no weights. A cell that it holds as finished is not run; only where a cell that is still
to run starts from it, it is trained again, with the same seed and so to the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleiber import archive, folder
from kleiber.catalog import Run, archive_runs, archived_runs
from kleiber.check import check
from kleiber.identity import config_hash

if TYPE_CHECKING:
    from kleiber.sweep import Cell, Launcher

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
