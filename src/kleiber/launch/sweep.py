"""A sweep: composes its cells, runs those that are not finished, and then starts the report of its study.

A study's runs.jsonl.gz contains the results of its runs, without weights. A cell that is finished there is not run
again. If an unfinished cell starts from such a run, that run is trained again first, with the same seed and therefore
to the same weights. Nothing is trained in this process, which imports no torch; the choice of the group `launcher`
decides how cells are run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.utils import get_class
from omegaconf import DictConfig

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status, listed
from kleiber.config.foreign import check_foreign, permit_config
from kleiber.config.model_size import check_memory
from kleiber.config.permissions import permitted_data
from kleiber.config.targets import build
from kleiber.config.url_secrets import remember_secrets
from kleiber.launch.cell import Cell, Launcher, archived_by_hash, unique_cells
from kleiber.launch.ranks import CELL_VARIABLE, started_as_rank
from kleiber.launch.run_list import print_table
from kleiber.records import archive, folder
from kleiber.records.catalog import Run, archive_runs, read_runs
from kleiber.records.continuation import check_never_continued, warn_without_effect
from kleiber.records.evaluations import is_complete
from kleiber.records.files import write_yaml
from kleiber.records.folder import cell_folder, config_hash, differing_keys
from kleiber.records.locks import is_locked
from kleiber.records.regular_files import make_folder
from kleiber.records.terminal import print_line
from kleiber.runs.inherit import complete_config, planned_run
from kleiber.types import Config, Json

# Keys that a design writes into the node `study` of a cell, and that no analysis reads.
CELL_KEYS = ("arm", "generation")
SWEEP_KEYS = ("root", "name", "launcher", "logger", "dry_run")  # keys of an archived run that this sweep sets anew


class Sweep:
    """A sweep of one command line. `start` runs it; Hydra's sweeper and launcher call `run` in between.

    codes         exit codes of the cells
    planned       cells of a dry run by folder, in all rounds of a design
    starts        runs of the rounds before, by folder, from which planned cells may start
    composed      cells by their overrides, so that none is composed twice
    overrides     of all cells of the round that is being composed, which are named by what differs
    checked       whether the study has accepted the plan
    folder        folder of the cells; None before the first is composed, and in a dry run
    study_folder  folder of the study that is reported at the end; None without a study
    study         node `study` of this command line
    """

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.codes: list[int] = []
        self.planned: dict[Path, Cell] = {}
        self.starts: dict[Path, Run] = {}
        self.composed: dict[tuple[str, ...], Cell] = {}
        self.overrides: Sequence[Sequence[str]] = ()
        self.checked = False
        self.is_trial = False
        self.folder: Path | None = None
        self.study_folder: Path | None = None
        self.study: Json = {}

    def start(self, overrides: list[str]) -> int:
        """Runs the sweep and returns the exit code: 0, 4 if some cells did not finish, 75 or 130 after a signal.

        A study with claims ends with the code of its decision, once all cells have finished.
        """
        if CELL_VARIABLE in os.environ:
            raise ConfigError(f"a cell of a sweep (environment variable {CELL_VARIABLE}) cannot start another sweep")
        if started_as_rank():
            raise ConfigError(
                "-m cannot be used under torchrun or srun: kleiber starts the ranks of each cell itself, leave them out"
            )
        try:
            self.composer.multirun(overrides, self)
        except Preempted as reason:
            print_line(f"{reason.status} by {reason}; run the same command again to run the missing cells")
            return reason.status.exit_code
        if self.planned:
            self._print_price()
        has_runs = self.study_folder is not None and self.study_folder.is_dir()
        reported = write_report(self.study_folder, self.study) if self.study_folder and has_runs else ExitCode.DONE
        if any(self.codes):
            failed = f"{sum(map(bool, self.codes))} of {len(self.codes)} cells did not finish"
            print_line(f"{failed}; see the lines above, and log.txt in the folders of those that started")
            return ExitCode.PARTLY_FAILED
        is_refused = reported == ExitCode.BAD_INPUT  # a trial may be too short to analyze
        return ExitCode.DONE if is_refused and self.is_trial else reported

    def __call__(self, cfg: DictConfig) -> int:
        """Raises NotImplementedError: Hydra wants a task function, which kleiber's launcher never calls."""
        raise NotImplementedError("KleiberLauncher calls `run` with all cells")

    def run(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[int]:
        """Composes and checks all cells, runs the unfinished ones, and returns the exit codes of all, in order.

        overrides  of each cell
        compose    composes the config of a cell from its overrides
        """
        self.overrides = overrides
        (first,) = self._cells(overrides[:1], compose)
        self.folder = None if first.config["dry_run"] else first.folder.parent
        if first.config["study"] and not first.config["dry_run"]:
            self.study_folder = first.folder.parent
            self.study = {key: value for key, value in first.config["study"].items() if key not in CELL_KEYS}
        launcher: Launcher = build(first.config["launcher"])
        if first.config["dry_run"]:
            return self.plan(overrides, compose)
        launcher.warm_up()
        cells = self._cells(overrides, compose)
        if not self.checked:
            self.check_plan({cell.folder: cell for cell in cells})
        archive_runs(first.folder.parent)
        archived = archived_by_hash(first.folder.parent)
        cells = [with_archived_folder(cell, archived) for cell in cells]
        todo, in_use = self._prepare_folders(cells, archived)
        try:
            if archived:
                retrain_bases(todo, archived, launcher)
            codes = launcher.run(todo) if todo else {}
        finally:
            if first.folder.parent.is_dir():  # it is removed with the last cell if all of them are refused
                print_table(read_runs(first.folder.parent))
        codes = dict.fromkeys({*in_use, *(cell.folder for cell in todo)}, ExitCode.FAILED) | codes
        results = [codes.get(cell.folder, ExitCode.DONE) for cell in cells]
        self.codes += results
        return results

    def plan(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[int]:
        """Composes and checks the cells of a dry run; returns exit code 0 for each."""
        cells = self._cells(overrides, compose)
        if not cells:  # a round of a design may have none
            return []
        archived = archived_by_hash(cells[0].folder.parent)
        cells = [with_archived_folder(cell, archived) for cell in cells]
        self.planned |= unique_cells(cells, self.planned)
        return [0] * len(cells)

    def check_plan(self, cells: Mapping[Path, Cell]) -> None:
        """Lets the study check whether these cells, with the finished runs, can answer its question.

        Raises ConfigError when they cannot. A sweep with max_cells or max_steps is not checked.
        """
        from kleiber.studies.study import build_study, planned_points

        self.checked = True
        first = next(iter(cells.values()))
        study = build_study(first.config)
        is_part = study is not None and study.max_cells is not None
        self.is_trial = is_part or first.config["trainer"].get("max_steps") is not None
        if study is None or self.is_trial:
            return
        home = first.folder.parent
        finished = [run for run in (read_runs(home) if home.is_dir() else []) if run.finished]
        runs = {run.folder: run.config for run in finished} | {where: cell.config for where, cell in cells.items()}
        try:
            for text in study.check_plan(planned_points(runs)):
                print_line(f"study {first.config['name']}: {text}")
        except ValueError as error:
            raise ConfigError(f"study {first.config['name']}: {error}") from error

    @staticmethod
    def checks_plan(node: Config) -> bool:
        """Whether the study of a config node can refuse a plan, such as one whose points determine no law."""
        from kleiber.studies.study import Study

        return get_class(node["_target_"]).check_plan is not Study.check_plan

    def planned_runs(self) -> list[Run]:
        """Returns the cells that a dry run has planned so far, as finished runs from which other cells can start."""
        return [planned_run(cell.folder, cell.config, cell.overrides) for cell in self.planned.values()]

    def _print_price(self) -> None:
        """Prints what the planned cells of all rounds will cost."""
        from kleiber.launch.price import print_price

        self.check_plan(self.planned)
        print_price({cell.folder: cell.config for cell in self.planned.values()})

    def _cells(self, overrides: Sequence[list[str]], compose: Callable[[list[str]], DictConfig]) -> list[Cell]:
        """Composes and checks cells, which may start from those that a dry run has planned so far."""
        self.starts = {run.folder.absolute(): run for run in self.planned_runs()}
        return [self._cell(lines, compose) for lines in overrides]

    def _cell(self, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> Cell:
        key = tuple(overrides)
        if key not in self.composed:
            self.composed[key] = self._compose(overrides, compose)
        return self.composed[key]

    def _compose(self, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> Cell:
        overrides = [remember_secrets(line) for line in overrides]  # those of a design come from its file
        config, model = resolve_config(compose(self.composer.prepare(overrides)))
        permit_config(config)
        config = complete_config(config, overrides, self.starts, self.composer)
        check(config)
        check_memory(config)
        if config["resume"] not in ("auto", "never"):
            raise ConfigError(
                f"resume={config['resume']} must be auto or never in a sweep, which resumes each cell in its own folder"
            )
        lines = [text.lstrip("+") for text in overrides if not text.startswith("hydra.")]
        lines = [text for text in lines if not (text.startswith("budget.") and text.endswith("=null"))]
        return Cell(cell_folder(config, lines, model, differing_keys(self.overrides)), config, lines)

    def _prepare_folders(self, cells: Sequence[Cell], archived: Mapping[str, Run]) -> tuple[list[Cell], set[Path]]:
        """Prepares the folders of the cells that have to run, and prints how many do not have to.

        Sets the run in a folder aside for resume=never. Writes the configs, so that a cell that never starts is listed.

        Returns the cells that have to run, and the folders of unfinished cells that another process runs.
        """
        todo, in_use, num_archived = [], set(), 0
        by_folder = unique_cells(cells)
        warn_without_effect({where: cell.config for where, cell in by_folder.items()})
        for cell in by_folder.values():
            if not (anew := cell.config["resume"] == "never"):
                check_never_continued(cell.folder, cell.config)
            is_archived = not anew and bool(archived) and config_hash(cell.config) in archived
            if is_archived and folder.status(cell.folder) != Status.FINISHED:
                num_archived += 1
            elif anew or not is_complete(cell.folder, cell.config):
                if is_locked(cell.folder):
                    in_use.add(cell.folder)
                    continue
                if anew:
                    folder.set_aside(cell.folder)
                folder.write_config(cell.folder, with_permissions(cell.config), cell.overrides)
                todo.append(cell)
        if done := len(by_folder) - len(todo) - len(in_use):
            without_weights = f", {num_archived} of them without weights, in {archive.NAME}" if num_archived else ""
            print_line(f"{done} of {len(by_folder)} cells are finished already{without_weights}")
        if in_use:
            names, count = listed(sorted(where.name for where in in_use), most=5), f"{len(in_use)} of {len(by_folder)}"
            text = f"{count} cells are in use by other processes and are not started: {names}"
            print_line(f"{text}; run the same command again when those have ended")
        return todo, in_use


def write_report(folder: Path, study: Config) -> int:
    """Writes the report of a study on its finished runs, and logs it to W&B if one of its runs is logged there.

    Returns the exit code of its claims, or that of bad input where the study cannot analyze the runs, which is printed.

    Also writes the node `study` of this command line to study.yaml, because cells may have been trained with another.
    """
    from kleiber.studies.fit_command import make_report

    make_folder(folder)
    write_yaml(folder / "study.yaml", study)
    return make_report(folder, mirror=any(folder.glob("*/wandb/*run-*")), laws=False)


def with_archived_folder(cell: Cell, archived: Mapping[str, Run]) -> Cell:
    """Returns the cell with the folder of its archived run, if it has one.

    The two folders have different names when equal overrides were written in different ways.
    """
    run = archived.get(config_hash(cell.config)) if archived else None
    return cell if run is None else replace(cell, folder=run.folder)


def retrain_bases(cells: Sequence[Cell], archived: Mapping[str, Run], launcher: Launcher) -> None:
    """Trains archived runs again from which `cells` start, if their folders do not contain weights."""
    needing = {name: cell for cell in cells for name in referenced_runs(cell.config, f"{cell.folder.parent}{os.sep}")}
    bases = [
        replace(
            needing[run.name], folder=run.folder, config=retrain_config(run, needing[run.name]), overrides=run.overrides
        )
        for run in archived.values()
        if run.name in needing and folder.status(run.folder) != Status.FINISHED and not is_locked(run.folder)
    ]
    if not bases:
        return
    retrain_bases(bases, archived, launcher)
    print_line(f"training {len(bases)} archived runs again, because other cells start from their weights")
    for base in bases:
        check(base.config)
        check_foreign(base.config, base.folder.parent / archive.NAME)
        folder.write_config(base.folder, with_permissions(base.config), base.overrides)
    launcher.run(bases)


def retrain_config(run: Run, cell: Cell) -> Json:
    """Returns the config with which an archived run is trained again, because `cell` starts from it."""
    changes = {key: cell.config[key] for key in SWEEP_KEYS}
    return {**run.config, **changes, "resume": "auto", "allow_data": cell.config.get("allow_data")}


def with_permissions(config: Config) -> Json:
    """Returns the config of a cell with the data that the sweep may read, which a run that it starts from may have."""
    data = [value for value in permitted_data() if value not in (config.get("allow_data") or ())]
    return {**config, "allow_data": [*(config.get("allow_data") or ()), *data]} if data else dict(config)


def referenced_runs(value: object, study: str) -> set[str]:
    """Returns the names of the runs in the folder `study` to which paths in a config point."""
    if isinstance(value, str):
        return {value.removeprefix(study).split(os.sep)[0]} if value.startswith(study) else set()
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for entry in below for name in referenced_runs(entry, study)}
