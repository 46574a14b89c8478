"""A sweep: which cells it has, which of them are finished already, and the study's analysis after them.

A study's runs.jsonl.gz keeps numbers and no weights. A cell that it holds as finished is not run. Only where a cell
still to run starts from such a run, that run is trained again, with the same seed and so to the same weights. Nothing
here trains, and the parent process imports no torch; how cells are run is the choice of the group `launcher`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import yaml
from hydra.utils import get_class
from omegaconf import DictConfig

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status
from kleiber.config.instantiate import build
from kleiber.launch.cell import Cell, Launcher
from kleiber.launch.ranks import CELL, launched
from kleiber.records import archive, folder
from kleiber.records.catalog import Run, archive_runs, archived_runs, print_table, read_runs
from kleiber.records.folder import cell_folder, config_hash
from kleiber.runs.inherit import complete_config, planned_run
from kleiber.types import Config, Json

OF_A_CELL = ("arm",)  # what a design writes into a cell's study, and no analysis reads
OF_THE_SWEEP = ("root", "name", "launcher", "logger", "dry_run")  # keys that a cell trained again takes from this start


class Sweep:
    """The task function that Hydra's sweeper and launcher call back; `start` is what the command line calls."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.codes: list[int] = []
        self.planned: dict[Path, Cell] = {}  # of a dry run, in all rounds
        self.composed: dict[tuple[str, ...], Cell] = {}
        self.checked = False  # whether the study has accepted the plan
        self.studied: Path | None = None
        self.study: Json = {}  # the node `study`, as in this start

    def start(self, overrides: list[str]) -> int:
        """Runs the sweep and returns 0, 4 when some cells did not finish, or 75 when a signal ended it."""
        if CELL in os.environ:
            raise ConfigError("a sweep inside a cell: a process that kleiber started must not sweep again")
        if launched():
            raise ConfigError(
                "-m under torchrun: start the sweep without it; cells of several devices get ranks of their own"
            )
        try:
            self.composer.multirun(overrides, self)
        except Preempted as reason:
            print(f"preempted by {reason}: the same command runs the missing cells")
            return ExitCode.PREEMPTED
        if self.planned:
            self._price()
        if self.studied is not None:
            report(self.studied, self.study)
        if any(self.codes):
            print(f"{sum(map(bool, self.codes))} of {len(self.codes)} cells did not finish; their log.txt says why")
        return ExitCode.PARTLY_FAILED if any(self.codes) else ExitCode.DONE

    def __call__(self, cfg: DictConfig) -> int:
        raise ConfigError("hydra/launcher: kleiber's own is needed here; choose how cells run with launcher=")

    def run(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[int]:
        """Exit codes of the cells, in order. All are composed and checked before one runs."""
        first = self._cell(overrides[0], compose)
        if first.config["study"] and not first.config["dry_run"]:
            self.studied = first.folder.parent
            self.study = {key: value for key, value in first.config["study"].items() if key not in OF_A_CELL}
        launcher: Launcher = build(first.config["launcher"])
        if first.config["dry_run"]:
            return self.plan(overrides, compose)
        launcher.warm_up()
        cells = [first, *(self._cell(lines, compose) for lines in overrides[1:])]
        if not self.checked:
            self.check_plan({cell.folder: cell for cell in cells})
        archived = archived_by_hash(first.folder.parent)
        cells = [in_archived_folder(cell, archived) for cell in cells]
        todo = self._unfinished(cells, archived)
        try:
            if archived:
                train_bases(todo, archived, launcher)
            codes = launcher.run(todo) if todo else {}
        finally:
            print_table(read_runs(first.folder.parent))
        results = [codes.get(cell.folder, ExitCode.FAILED if cell in todo else ExitCode.DONE) for cell in cells]
        self.codes += results
        return results

    def plan(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[int]:
        """Composes and checks cells that are not trained now; returns a 0 for each."""
        cells = [self._cell(lines, compose) for lines in overrides]
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
        finished = [run for run in (read_runs(home) if home.is_dir() else []) if run.status == Status.FINISHED]
        runs = {run.folder: run.config for run in finished} | {where: cell.config for where, cell in cells.items()}
        try:
            for text in study.check_plan(points_of(runs)):
                print(f"study={first.config['name']}: {text}", flush=True)
        except ValueError as error:
            raise ConfigError(f"study={first.config['name']}: {error}") from error

    @staticmethod
    def fits_a_law(node: Config) -> bool:
        """Whether a node `study` needs points that determine a law."""
        from kleiber.studies.study import Study

        return get_class(node["_target_"]).check_plan is not Study.check_plan

    def planned_runs(self) -> list[Run]:
        """The cells of a dry run so far, as runs from which others can start."""
        return [planned_run(cell.folder, cell.config, cell.overrides) for cell in self.planned.values()]

    def _price(self) -> None:
        """Prints what the planned cells of all rounds cost; starts nothing."""
        from kleiber.launch.price import price

        self.check_plan(self.planned)
        price({cell.folder: cell.config for cell in self.planned.values()})

    def _cell(self, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> Cell:
        key = tuple(overrides)
        if key not in self.composed:  # a cell that was rehearsed is not composed again
            self.composed[key] = self._composed(overrides, compose)
        return self.composed[key]

    def _composed(self, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> Cell:
        config, model = resolve_config(compose(self.composer.prepare(overrides)))
        config = complete_config(config, overrides, {run.folder.absolute(): run for run in self.planned_runs()})
        check(config)
        if config["resume"] not in ("auto", "never"):
            raise ConfigError(
                f"resume={config['resume']}: a sweep resumes each cell in its own folder, so write auto or never"
            )
        lines = [text.lstrip("+") for text in overrides if not text.startswith("hydra.")]
        lines = [text for text in lines if not (text.startswith("budget.") and text.endswith("=null"))]
        return Cell(cell_folder(config, lines, model), config, lines)

    def _unfinished(self, cells: Sequence[Cell], archived: Mapping[str, Run]) -> list[Cell]:
        """Cells that are to run. Writes the config of each, so that one that never starts is listed as missing."""
        todo, in_archive = [], 0
        finished = {run.folder for run in archived.values()}
        for cell in unique(cells).values():
            if cell.config["resume"] == "never":
                folder.set_aside(cell.folder)
            elif cell.folder in finished and folder.status(cell.folder) != Status.FINISHED:
                in_archive += 1
                continue
            if folder.status(cell.folder) != Status.FINISHED:
                todo.append(cell)
                folder.write_config(cell.folder, cell.config, cell.overrides)
        done = len(unique(cells)) - len(todo)
        if done:
            without_weights = f", {in_archive} of them in {archive.NAME} alone, without weights" if in_archive else ""
            print(f"{done} of {len(unique(cells))} cells are finished already{without_weights}")
        return todo


def unique(cells: Sequence[Cell], before: Mapping[Path, Cell] = MappingProxyType({})) -> dict[Path, Cell]:
    """Cells by folder, without those of rounds `before`. Prints where two cells of a round are the same run."""
    by_folder: dict[Path, Cell] = {}
    for cell in cells:
        if cell.folder in before:
            continue
        if cell.folder in by_folder:
            print(f"the same run twice: {' '.join(cell.overrides)} is {' '.join(by_folder[cell.folder].overrides)}")
        by_folder.setdefault(cell.folder, cell)
    return by_folder


def report(folder: Path, study: Config) -> None:
    """Writes the report of a study over its finished runs, and mirrors it to W&B where its runs are mirrored.

    study.yaml keeps the node `study` of this start: the cells may have been trained under another one.
    """
    from kleiber.launch.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    mirrored = any(folder.glob("*/wandb/*run-*"))
    main(["report", str(folder), *(["--wandb"] if mirrored else [])])


def archived_by_hash(study: Path) -> dict[str, Run]:
    """The finished runs of a study's archive by the hash of their configs; first archives what ended in the folder.

    Hashes are computed anew, so the cells of a study that was moved, or begun by an earlier version, are recognized.
    """
    archive_runs(study)
    runs = [run for run in archived_runs(study / archive.NAME) if run.status == Status.FINISHED]
    return {config_hash({**run.config, "root": str(study.parent), "name": study.name}): run for run in runs}


def in_archived_folder(cell: Cell, archived: Mapping[str, Run]) -> Cell:
    """The cell in the folder that its run has in the archive, where overrides in another wording named the folder."""
    run = archived.get(config_hash(cell.config)) if archived else None
    return cell if run is None else replace(cell, folder=run.folder)


def train_bases(cells: Sequence[Cell], archived: Mapping[str, Run], launcher: Launcher) -> None:
    """Trains again the archived runs from which `cells` start and whose weights are not in their folders."""
    needing = {name: cell for cell in cells for name in runs_named(cell.config, f"{cell.folder.parent}{os.sep}")}
    bases = [
        replace(
            needing[run.name], folder=run.folder, config=config_here(run, needing[run.name]), overrides=run.overrides
        )
        for run in archived.values()
        if run.name in needing and folder.status(run.folder) != Status.FINISHED
    ]
    if not bases:
        return
    train_bases(bases, archived, launcher)
    print(f"training {len(bases)} finished runs again, because other cells start from their weights", flush=True)
    for base in bases:
        check(base.config)
        folder.write_config(base.folder, base.config, base.overrides)
    launcher.run(bases)


def config_here(run: Run, cell: Cell) -> Json:
    """The config of an archived run that is trained again here, because `cell` starts from it."""
    return {**run.config, **{key: cell.config[key] for key in OF_THE_SWEEP}, "resume": "auto"}


def runs_named(value: object, study: str) -> set[str]:
    """Names of the runs in the folder `study` into which the paths of a config lead."""
    if isinstance(value, str):
        return {value.removeprefix(study).split(os.sep)[0]} if value.startswith(study) else set()
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for entry in below for name in runs_named(entry, study)}
