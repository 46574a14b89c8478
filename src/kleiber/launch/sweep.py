"""Many runs: which cells a sweep has, and the launchers that run them. The other cells go on when one fails.

`Process` gives every cell a process of its own. CPU cells of one device are forked from a server that has imported
torch and lightning and never computes, so the first step comes at once; they have one thread each. Cells of several
devices, of several threads or on a GPU are fresh processes. Nothing here trains, and the parent imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from kleiber.config.check import check
from kleiber.config.compose import resolved
from kleiber.config.errors import ConfigError
from kleiber.config.signals import PREEMPTED, Preempted
from kleiber.launch import process
from kleiber.launch.cell import Cell, Launcher, archived_by_hash, placed, train_bases
from kleiber.launch.ranks import CELL, launched
from kleiber.records import archive, folder
from kleiber.records.catalog import Run, archive_run, read_runs, table
from kleiber.records.folder import cell_folder
from kleiber.runs.inherit import adopt, planned_run

PARTLY_FAILED = 4
OF_A_CELL = ("arm",)  # what a design writes into a cell's study, and no analysis reads


class Basic:
    """One cell after another in this process, its output on the console."""

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        for one in cells:
            if one.devices > 1:
                raise ConfigError(
                    f"launcher=basic runs cells in one process, but trainer.devices={one.devices}: "
                    "set launcher=process or trainer.devices=1"
                )
        codes = {}
        for number, one in enumerate(cells, 1):
            print(f"[{number}/{len(cells)}] {one.folder.name}", flush=True)
            codes[one.folder] = process.run(one.config, one.folder, one.overrides)
            if not one.config["dry_run"]:
                archive_run(one.folder)
            if codes[one.folder] == process.INTERRUPTED:
                raise KeyboardInterrupt
            if codes[one.folder] == PREEMPTED:
                raise Preempted(f"cell {number} of {len(cells)}")
        return codes


@dataclass(frozen=True)
class Process:
    """One process per cell.

    workers     cells at once; None means one per core
    retries     how often a failed cell is started again
    stop_after  start no more cells once so many have failed; None means go on
    """

    workers: int | None = None
    retries: int = 0
    stop_after: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("retries", 0), ("stop_after", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"launcher.{name}={value}: write a number from {least}")

    def warm_up(self) -> None:
        """Lets the fork server import while the cells are composed."""
        from kleiber.launch.local_pool import context

        context(start=True)

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        from kleiber.launch.local_pool import Pool

        return Pool(cells, self.workers, self.retries, self.stop_after).run()


class Sweep:
    """The task function that Hydra's sweeper and launcher call back; `start` is what the command line calls."""

    def __init__(self, composer: Any) -> None:
        self.composer = composer
        self.codes: list[int] = []
        self.planned: dict[Path, Cell] = {}  # of a dry run, in all rounds
        self.composed: dict[tuple[str, ...], Cell] = {}
        self.checked = False  # whether the study was asked if the plan can answer its question
        self.studied: Path | None = None
        self.asked: dict[str, Any] = {}  # the study, as this start has it

    def start(self, overrides: list[str]) -> int:
        """Runs the sweep and returns 0, 4 when some cells have failed, or 75 when it was asked to end."""
        if CELL in os.environ:
            raise ConfigError("a sweep inside a cell: a process that kleiber started must not sweep again")
        if launched():
            raise ConfigError(
                "-m under torchrun: start the sweep without it; cells of several devices get ranks of their own"
            )
        try:
            self.composer.multirun(overrides, self)
        except Preempted as reason:
            print(f"preempted by {reason}: the same command goes on with what is missing")
            return PREEMPTED
        if self.planned:
            self._price()
        if self.studied is not None:
            report(self.studied, self.asked)
        if any(self.codes):
            print(f"{sum(map(bool, self.codes))} of {len(self.codes)} cells did not finish; their log.txt says why")
        return PARTLY_FAILED if any(self.codes) else 0

    def __call__(self, cfg: DictConfig) -> int:
        raise ConfigError("hydra/launcher: kleiber's own is needed here; choose how cells run with launcher=")

    def run(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[int]:
        """Exit codes of the cells, in order. All are composed and checked before one runs."""
        first = self._cell(overrides[0], compose)
        if first.config["study"] and not first.config["dry_run"]:
            self.studied = first.folder.parent
            self.asked = {key: value for key, value in first.config["study"].items() if key not in OF_A_CELL}
        launcher: Launcher = instantiate(first.config["launcher"])
        if first.config["dry_run"]:
            return self.plan(overrides, compose)
        if isinstance(launcher, Process):
            launcher.warm_up()
        cells = [first, *(self._cell(given, compose) for given in overrides[1:])]
        if not self.checked:
            self.check_plan({one.folder: one for one in cells})
        archived = archived_by_hash(first.folder.parent)
        cells = [placed(one, archived) for one in cells]
        todo = self._unfinished(cells, archived)
        try:
            if archived:
                train_bases(todo, archived, launcher)
            codes = launcher.run(todo) if todo else {}
        finally:
            table(read_runs(first.folder.parent))
        told = [codes.get(one.folder, process.FAILED if one in todo else 0) for one in cells]
        self.codes += told
        return told

    def plan(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[int]:
        """Composes and checks cells that are not trained now; returns a 0 for each, as if they had been."""
        cells = [self._cell(given, compose) for given in overrides]
        self.planned |= unique(cells, self.planned)
        return [0] * len(cells)

    def check_plan(self, cells: Mapping[Path, Cell]) -> None:
        """Asks the study whether these cells, with what is finished already, can answer its question.

        Raises ConfigError where they cannot. A sweep that is cut short on purpose is not asked.
        """
        from kleiber.studies.designs.sizes import points_of, study_of

        self.checked = True
        first = next(iter(cells.values()))
        study = study_of(first.config)
        if study is None or study.max_cells is not None or first.config["trainer"].get("max_steps") is not None:
            return
        home = first.folder.parent
        there = [run for run in (read_runs(home) if home.is_dir() else []) if run.status == "finished"]
        runs = {run.folder: run.config for run in there} | {where: one.config for where, one in cells.items()}
        try:
            for text in study.check_plan(points_of(runs)):
                print(f"study={first.config['name']}: {text}", flush=True)
        except ValueError as error:
            raise ConfigError(f"study={first.config['name']}: {error}") from error

    @staticmethod
    def fits_a_law(node: Any) -> bool:
        """Whether the study of a config asks for points that determine a law."""
        from kleiber.studies.study import Study

        return get_class(node["_target_"]).check_plan is not Study.check_plan

    def planned_runs(self) -> list[Run]:
        """The cells of a dry run so far, as runs from which others can start."""
        return [planned_run(one.folder, one.config, one.overrides) for one in self.planned.values()]

    def _price(self) -> None:
        """What the planned cells cost, all rounds together; nothing is started."""
        from kleiber.launch.price import price

        self.check_plan(self.planned)
        price({one.folder: one.config for one in self.planned.values()})

    def _cell(self, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> Cell:
        key = tuple(overrides)
        if key not in self.composed:  # a cell that was rehearsed is not composed again
            self.composed[key] = self._composed(overrides, compose)
        return self.composed[key]

    def _composed(self, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> Cell:
        config, model = resolved(compose(self.composer.prepare(overrides)))
        config = adopt(config, overrides, {run.folder.absolute(): run for run in self.planned_runs()})
        check(config)
        if config["resume"] not in ("auto", "never"):
            raise ConfigError(
                f"resume={config['resume']}: a sweep resumes each cell where it lies; write auto or never"
            )
        told = [text.lstrip("+") for text in overrides if not text.startswith("hydra.")]
        told = [text for text in told if not (text.startswith("budget.") and text.endswith("=null"))]
        return Cell(cell_folder(config, told, model), config, told)

    def _unfinished(self, cells: Sequence[Cell], archived: Mapping[str, Run]) -> list[Cell]:
        """Cells that are to run, each with its folder and config written: what never starts reads as missing."""
        todo, in_archive = [], 0
        finished = {run.folder for run in archived.values()}
        for one in unique(cells).values():
            if one.config["resume"] == "never":
                folder.set_aside(one.folder)
            elif one.folder in finished and folder.status(one.folder) != "finished":
                in_archive += 1
                continue
            if folder.status(one.folder) != "finished":
                todo.append(one)
                folder.write_config(one.folder, one.config, one.overrides)
        done = len(unique(cells)) - len(todo)
        if done:
            without_weights = f", {in_archive} of them in {archive.NAME} alone, without weights" if in_archive else ""
            print(f"{done} of {len(unique(cells))} cells are finished already{without_weights}")
        return todo


def unique(cells: Sequence[Cell], before: Mapping[Path, Cell] = MappingProxyType({})) -> dict[Path, Cell]:
    """Cells by folder, less those of rounds `before`; two of one round with one identity are one run, which is said."""
    found: dict[Path, Cell] = {}
    for one in cells:
        if one.folder in before:
            continue
        if one.folder in found:
            print(f"the same run twice: {' '.join(one.overrides)} is {' '.join(found[one.folder].overrides)}")
        found.setdefault(one.folder, one)
    return found


def report(folder: Path, asked: dict[str, Any]) -> None:
    """The analysis of a study, over what is finished, mirrored where its runs are; without the extra it says so.

    How the study was asked for this time stays in study.yaml: its cells may have been trained for an earlier asking.
    """
    from kleiber.launch.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    mirrored = any(folder.glob("*/wandb/*run-*"))
    main(["report", str(folder), *(["--wandb"] if mirrored else [])])
