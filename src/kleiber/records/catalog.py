"""The table of runs: a folder of runs as a list of `Run`, and as rows, one per leaf. Every analysis reads it.

A run has the same content whether it is read from its folder or from the study's runs.jsonl.gz. A run that was planned
and not started has the status `missing`. One that says `running`, or has begun and has no readable summary, and holds
no lock has the status `killed`. Nothing here repairs or deletes files. Imports no torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, get_origin, get_type_hints

from kleiber.config.cost import add_costs
from kleiber.config.errors import Status, listed
from kleiber.records import archive
from kleiber.records.archive import archive_rows, assemble_runs, may_replace
from kleiber.records.folder import TOKENIZER, read_config, read_overrides, status_of
from kleiber.records.metrics import LoggedRows, condense
from kleiber.records.regular_files import DamagedFile
from kleiber.records.summary_file import check_summary, summary_or_warning
from kleiber.types import Config, Json, Row
from kleiber.types.score import Metric, Score

if TYPE_CHECKING:
    import pandas

ENDED = (Status.FINISHED, Status.DIVERGED, Status.FAILED)  # archived; interrupted runs can still be resumed
SET_ASIDE = re.compile(r".*-[0-9a-f]{8}\.\d+")  # folder of an earlier run that resume=never has replaced
PART = 100  # runs that are archived at once
TRAINED_HERE = "bpe/"  # prefix of the hash of a tokenizer that was trained for the run


class Columns(TypedDict):
    """The columns of the table of runs, a row per leaf; every metric of the leaf follows as a column of its own name.

    Losses are in nats per token, or per sample where the objective's loss is a mean over samples. None: not recorded.
    """

    run: str  # name of the run's folder
    stage: str | None  # name of the leaf
    trunk: str  # rows with the same trunk share its training, so they are not independent samples
    status: str  # a `kleiber.config.errors.Status`
    error: str | None
    seed: int | None
    overrides: str  # joined by spaces
    params: int | None  # all parameters
    active: int | None  # parameters that a token uses, embeddings included
    non_embedding: int | None
    tokens: int | None  # training tokens since the root of the tree
    flops: float | None  # of the model, forward and backward, since the root of the tree
    lr: float | None  # peak learning rate of the optimizer
    batch_tokens: int | None  # of one optimizer step
    seconds: Annotated[float | None, Metric("time of the run", "lower", "s")]
    watt_hours: Annotated[float | None, Metric("energy of training", "lower", "Wh")]  # see `kleiber.config.cost`
    price: Annotated[float | None, Metric("price of training", "lower")]  # None where cost.price is null
    loss: Annotated[float | None, Metric("loss", "lower", "nats per token")]  # None where the leaf has several tasks


# Those that are measured, by name.
COLUMNS: Mapping[str, Metric] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Columns, include_extras=True).items()
    if get_origin(hint) is Annotated
}


@dataclass(frozen=True)
class Run:
    """One run, as its summary describes it.

    folder    of the run; of an archived run, the folder beside the archive in which it was trained
    archived  `config` and `rows` of a run that is in runs.jsonl.gz or only planned; None: they are read from the folder
    """

    folder: Path
    status: Status
    summary: Json
    archived: Config | None = None

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether all stages were trained and evaluated."""
        return self.status == Status.FINISHED

    @property
    def identity(self) -> tuple[Path, str]:
        """The study's folder, and what tells the run from others there even after its own folder was renamed."""
        return self.folder.parent, self.summary.get("run_id") or self.name

    @cached_property
    def config(self) -> Json:
        """The composed config. Raises ConfigError for a folder without one."""
        return read_config(self.folder) if self.archived is None else self.archived["config"]

    @cached_property
    def overrides(self) -> list[str]:
        """The overrides that the user or the design wrote for this run, without Hydra's settings."""
        if self.archived is None and (self.folder / "overrides.yaml").is_file():
            return [line for line in read_overrides(self.folder) if not line.startswith("hydra.")]
        return self.summary.get("overrides") or []

    @cached_property
    def rows(self) -> list[Json]:
        """The rows of metrics.jsonl, condensed to a bounded number per stage (`kleiber.records.metrics.condense`)."""
        return condense(LoggedRows(self.folder)) if self.archived is None else self.archived["rows"]

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer that was trained for this run; None where it uses another tokenizer."""
        place = self.folder / TOKENIZER
        if self.archived is None:
            return place if place.is_dir() else None
        tokenizer_hash = str(((self.stages or [{}])[0].get("data") or {}).get("tokenizer_hash"))
        return place if tokenizer_hash.startswith(TRAINED_HERE) else None

    @property
    def stages(self) -> list[Json]:
        """The stages in summary.json, in order."""
        return self.summary.get("stages") or []

    @property
    def stage(self) -> Json:
        """The last stage in summary.json, or an empty dictionary."""
        return self.stages[-1] if self.stages else {}

    @property
    def leaves(self) -> list[Json]:
        """The stages from which no other stage continues: one stage of an ordinary run, the branches of a trunk.

        A trunk whose branches have not started is not a leaf, because its learning-rate schedule is not finished.
        """
        parents = {stage.get("parent") for stage in self.stages}
        ends = [stage for stage in self.stages if stage.get("name", "main") not in parents]
        return [stage for stage in ends if stage.get("parent") or stage.get("name", "main") == "main"]

    @property
    def metrics(self) -> dict[str, float]:
        """The latest metrics of the last stage."""
        return self.stage.get("metrics") or {}

    @property
    def scores(self) -> dict[str, Score]:
        """The latest metrics of the last stage with their intervals, units, directions and labels."""
        return stage_scores(self.stage)

    def row(self) -> Json:
        """The row of the last stage: `Columns` and every metric."""
        return self.stage_row(self.stage)

    def leaf_rows(self) -> list[Json]:
        """A row per leaf; a run without a leaf, such as one that failed early, has one row without measurements."""
        return [self.stage_row(stage) for stage in self.leaves or [{}]]

    def stage_row(self, stage: Json) -> Json:
        """The row of a stage: `Columns` and every metric."""
        costs = add_costs([stage.get("cost") for stage in self.stages])
        params, flops, metrics = (stage.get(key) or {} for key in ("params", "flops", "metrics"))
        names = loss_keys(stage)
        losses = [value for key, value in metrics.items() if key in names]
        columns: Columns = {
            "run": self.name,
            "stage": stage.get("name"),
            "trunk": f"{self.name}/{stage['trunk']}" if stage.get("trunk") else self.name,
            "status": str(self.status),
            "error": self.summary.get("error"),
            "seed": self.summary.get("seed"),
            "overrides": " ".join(self.summary.get("overrides") or []),
            "params": params.get("total"),
            "active": params.get("active"),
            "non_embedding": params.get("non_embedding"),
            "tokens": stage.get("tokens"),
            "flops": flops.get("model"),
            "lr": stage.get("lr"),
            "batch_tokens": stage.get("batch_tokens"),
            "seconds": self.summary.get("seconds"),
            "watt_hours": costs.get("watt_hours"),
            "price": costs.get("price"),
            "loss": losses[0] if len(losses) == 1 else None,
        }
        return {**columns, **metrics}


def loss_keys(stage: Row) -> set[str]:
    """Keys of the validation losses on the tasks of a stage, those that were not scored included."""
    names = {f"val/{task}/loss" for task in stage.get("tasks") or ()}
    return names or {key for key in stage.get("metrics") or {} if key.startswith("val/") and key.endswith("/loss")}


def stage_scores(stage: Row) -> dict[str, Score]:
    """The scores of a stage, by the keys of its metrics; a metric that was recorded alone has its key as label."""
    recorded = stage.get("scores") or {}
    return {
        key: Score.from_json(recorded.get(key) or {"value": value, "label": key})
        for key, value in (stage.get("metrics") or {}).items()
    }


def score_of(runs: Iterable[Run], measure: str) -> Score:
    """Unit, direction and label of a column of the table of runs, as they were recorded by what measured it.

    The value is that of the first run that has it; nan where no run does. `loss` is what the losses of the tasks are.
    A measure that nobody declared has its name as label, and no direction.
    """
    column = COLUMNS.get(measure)
    for run in runs:
        for stage in run.leaves:
            recorded = stage.get("scores") or {}
            names = sorted(loss_keys(stage)) if measure == "loss" else [measure]
            score = next((Score.from_json(recorded[name]) for name in names if name in recorded), None)
            if score is not None:
                return score if column is None else replace(score, label=column.label)
    if column is None:
        return Score(math.nan, label=measure)
    return Score(math.nan, unit=column.unit, better=column.better, label=column.label)


def read_runs(place: Path) -> list[Run]:
    """All runs in a folder and its subfolders, or in one runs.jsonl.gz, in order of path; archived runs included.

    A run that has both a folder, renamed or not, and archived rows is read from its folder, unless only the rows are
    finished. Raises FileNotFoundError where there is no such folder, and ConfigError for a damaged archive.
    """
    if place.is_file():
        return archived_runs(place)
    if not place.is_dir():
        raise FileNotFoundError(f"{place} does not exist: name a run, or a folder that contains runs")
    homes, archives = find_records(place)
    runs = {home: read_run(home) for home in homes}
    places = {run.identity: home for home, run in runs.items()}
    for file in archives:
        for run in archived_runs(file):
            home = run.folder if run.folder in runs else places.get(run.identity, run.folder)
            if home not in runs or (run.finished and not runs[home].finished):
                runs[home] = run
    return [runs[home] for home in sorted(runs)]


def find_records(place: Path) -> tuple[list[Path], list[Path]]:
    """The folders of runs in a folder and its subfolders, and the files runs.jsonl.gz there."""
    homes, archives = [], []
    for parent, subfolders, files in os.walk(place):
        home = Path(parent)
        if home.name == "wandb":  # the folders of W&B's runs have a config.yaml too
            subfolders[:] = [name for name in subfolders if not name.startswith(("run-", "offline-run-"))]
        if archive.NAME in files:
            archives.append(home / archive.NAME)
        is_run = "config.yaml" in files or "summary.json" in files
        if is_run and ".part-" not in home.name and (home == place or not SET_ASIDE.fullmatch(home.name)):
            homes.append(home)
    return homes, archives


def read_run(folder: Path) -> Run:
    """The run in a folder. A damaged summary.json is read as one that is missing, with a warning."""
    summary = summary_or_warning(folder)
    return Run(folder, status_of(summary, folder), summary)


def find_run(folder: Path) -> Run | None:
    """The run in `folder`, else the run of the same name in runs.jsonl.gz of the parent folder, else None.

    A finished run takes precedence over an unfinished one.
    """
    here = read_run(folder) if (folder / "config.yaml").is_file() else None
    if here is not None and here.finished:
        return here
    archived = next((run for run in archived_runs(folder.parent / archive.NAME) if run.name == folder.name), None)
    return archived if archived is not None and (here is None or archived.finished) else here


def archived_runs(file: Path) -> list[Run]:
    """The runs of a runs.jsonl.gz in order of name; none where there is no such file."""
    try:
        state = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # such as a link to itself
        raise DamagedFile(file, error.strerror or str(error)) from None
    return list(_archived_runs(file, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _archived_runs(file: Path, _changed: int, _size: int) -> tuple[Run, ...]:
    """Cached while the file does not change, because a design looks up each of its runs."""
    home, rows = file.parent, archive.read(file)
    for number, row in enumerate(rows, 1):
        check_summary(row["summary"], file, f"summary of line {number}: ")
    return tuple(
        Run(home / name, Status(summary["status"]), summary, archived)
        for name, summary, archived in assemble_runs(rows, home)
    )


def archive_run(folder: Path) -> None:
    """Adds a run that has ended to the runs.jsonl.gz beside its folder."""
    _append(folder.parent / archive.NAME, [read_run(folder)])


def archive_runs(study: Path) -> None:
    """Adds every ended run of a study's folder to its runs.jsonl.gz, unless the archive has the same result.

    Raises ConfigError for a damaged archive.
    """
    archived = archived_runs(study / archive.NAME)
    by_name, by_id = {run.name: run for run in archived}, {run.identity: run for run in archived}
    folders = [path.parent for path in sorted(study.glob("*/config.yaml")) if not SET_ASIDE.fullmatch(path.parent.name)]
    for begin in range(0, len(folders), PART):  # an append reads the whole file, and all rows would fill the memory
        runs = [read_run(folder) for folder in folders[begin : begin + PART]]
        archived_versions = [by_name.get(run.name) or by_id.get(run.identity) for run in runs]
        changed = [run for run, old in zip(runs, archived_versions, strict=True) if may_replace(old, run)]
        _append(study / archive.NAME, changed)


def _append(file: Path, runs: Sequence[Run]) -> None:
    """Adds the runs that have ended to an archive. Prints errors, and raises none: the results are in folders too."""
    rows: list[Json] = []
    for run in (run for run in runs if run.status in ENDED):
        with archive.errors_printed(file, run.name):
            rows += archive_rows(run)
    with archive.errors_printed(file, listed([run.name for run in runs])):
        archive.append(file, rows)


def frame(runs: Iterable[Run]) -> pandas.DataFrame:
    """The table of runs: `Columns` and every metric, a row per leaf."""
    import pandas

    return pandas.DataFrame([row for run in runs for row in run.leaf_rows()])


def counts(runs: Sequence[Run]) -> str:
    """The number of runs with each status, such as `1 failed, 3 finished`."""
    statuses = [run.status for run in runs]
    return ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses))) or "no runs"
