"""A folder of runs as a list of Run, and as a DataFrame: the one place where analyses read runs. No torch.

A run is read from its folder or from the study's runs.jsonl.gz, and is the same either way. A folder with a config and
no summary is `missing`: a sweep planned it and never came to it. `running` without a live lock reads as `killed`. What
it cannot read it counts as missing, and it never repairs or deletes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleiber.records import archive
from kleiber.records.archive import leaf_rows, runs_of
from kleiber.records.folder import TOKENIZER, read_config, read_overrides, status
from kleiber.records.summary import Row, condensed, read, read_rows

if TYPE_CHECKING:
    import pandas

COLORS = {"finished": "green", "running": "cyan", "missing": "yellow"}
ENDED = ("finished", "diverged", "failed")  # what is archived; a run that was interrupted goes on
SET_ASIDE = re.compile(r".*-[0-9a-f]{8}\.\d+")  # folder of an earlier run that resume=never has replaced
TRAINED_HERE = "bpe/"  # how the hash of a tokenizer begins that was trained for the run


@dataclass(frozen=True)
class Run:
    """One run as its summary tells it. Losses are in nats per token, of the last finished stage, by data set.

    folder    where the run lies; of an archived run where it would lie, beside the archive
    archived  `config` and `rows` of a run that was read from runs.jsonl.gz, or is planned alone; None of one that was
              read from its folder
    """

    folder: Path
    status: str
    summary: dict[str, Any]
    archived: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config. Raises ConfigError for a folder without one."""
        return read_config(self.folder) if self.archived is None else self.archived["config"]

    @cached_property
    def overrides(self) -> list[str]:
        """What the user or the design wrote for this run, without what is Hydra's."""
        if self.archived is None and (self.folder / "overrides.yaml").is_file():
            return [line for line in read_overrides(self.folder) if not line.startswith("hydra.")]
        return self.summary.get("overrides") or []

    @cached_property
    def rows(self) -> list[Row]:
        """What the run logged, condensed to a bounded number of rows a stage (`metrics.condensed`)."""
        return condensed(read_rows(self.folder)) if self.archived is None else self.archived["rows"]

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer that was trained for this run; None where the run names another's."""
        place = self.folder / TOKENIZER
        if self.archived is None:
            return place if place.is_dir() else None
        tokenizer_hash = str(((self.stages or [{}])[0].get("data") or {}).get("tokenizer_hash"))
        return place if tokenizer_hash.startswith(TRAINED_HERE) else None

    @property
    def stages(self) -> list[dict[str, Any]]:
        return self.summary.get("stages") or []

    @property
    def stage(self) -> dict[str, Any]:
        """The last stage that the run wrote down, or an empty one."""
        return self.stages[-1] if self.stages else {}

    @property
    def leaves(self) -> list[dict[str, Any]]:
        """The stages that no other stage goes on from: one of an ordinary run, the branches of a trunk.

        A trunk whose branches have not come yet is none: its loss is not that of a finished schedule.
        """
        parents = {stage.get("parent") for stage in self.stages}
        ends = [stage for stage in self.stages if stage.get("name", "main") not in parents]
        return [stage for stage in ends if stage.get("parent") or stage.get("name", "main") == "main"]

    @property
    def metrics(self) -> dict[str, float]:
        return self.stage.get("metrics") or {}

    def row(self) -> dict[str, Any]:
        """One flat row: what identifies the run, its size, its cost and every metric of its last stage."""
        return self.point(self.stage)

    def points(self) -> list[dict[str, Any]]:
        """A row for each leaf; of a tree whose trunk alone is there, or of a run that failed, one row all the same."""
        return [self.point(stage) for stage in self.leaves or [{}]]

    def point(self, stage: dict[str, Any]) -> dict[str, Any]:
        """One flat row of a stage. Branches of one trunk share their "trunk", and are no independent samples."""
        params, flops, metrics = (stage.get(key) or {} for key in ("params", "flops", "metrics"))
        own = {f"val/{task}/loss" for task in stage.get("tasks") or ()}
        losses = [
            value
            for key, value in metrics.items()
            if (key in own if own else key.startswith("val/") and key.endswith("/loss"))
        ]
        return {
            "run": self.name,
            "stage": stage.get("name"),
            "trunk": f"{self.name}/{stage['trunk']}" if stage.get("trunk") else self.name,
            "status": self.status,
            "error": self.summary.get("error"),
            "seed": self.summary.get("seed"),
            "overrides": " ".join(self.summary.get("overrides") or []),
            "params": params.get("total"),
            "active": params.get("active"),
            "non_embedding": params.get("non_embedding"),
            "tokens": stage.get("tokens"),
            "flops": flops.get("model"),
            "lr": stage.get("lr"),
            "seconds": self.summary.get("seconds"),
            "loss": losses[0] if len(losses) == 1 else None,
            **metrics,
        }


def read_runs(place: Path) -> list[Run]:
    """Every run at or under a folder, archived ones among them, or those of one runs.jsonl.gz; in order of path.

    A run that has both a folder and archived rows is read from its folder, unless only the rows are finished. Raises
    FileNotFoundError when there is no such folder, ConfigError for an archive that is damaged.
    """
    if place.is_file():
        return archived_runs(place)
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: there is no such folder of runs")
    homes = {path.parent for name in ("config.yaml", "summary.json") for path in place.rglob(name)}
    homes = {home for home in homes if home == place or not SET_ASIDE.fullmatch(home.name)}
    runs = {home: read_run(home) for home in homes if ".part-" not in home.name and "wandb" not in home.parts}
    for file in place.rglob(archive.NAME):
        for run in archived_runs(file):
            if run.folder not in runs or (run.status == "finished" != runs[run.folder].status):
                runs[run.folder] = run
    return [runs[home] for home in sorted(runs)]


def read_run(folder: Path) -> Run:
    return Run(folder, status(folder), read(folder / "summary.json") or {})


def find_run(folder: Path) -> Run | None:
    """The run that lies in a folder, or is archived beside it under the folder's name; None where it is neither."""
    here = read_run(folder) if (folder / "config.yaml").is_file() else None
    if here is not None and here.status == "finished":
        return here
    archived = next((run for run in archived_runs(folder.parent / archive.NAME) if run.name == folder.name), None)
    return archived if archived is not None and (here is None or archived.status == "finished") else here


def archived_runs(file: Path) -> list[Run]:
    """The runs of a runs.jsonl.gz in order of name, none where there is no such file."""
    try:
        state = file.stat()
    except FileNotFoundError:
        return []
    return list(_archived_runs(file, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _archived_runs(file: Path, _changed: int, _size: int) -> tuple[Run, ...]:
    """Read once as long as the file stays as it is: a design asks for each of its runs."""
    home = file.parent
    return tuple(
        Run(home / name, summary["status"], summary, archived)
        for name, summary, archived in runs_of(archive.read(file), home)
    )


def archive_run(folder: Path) -> None:
    """Adds a run that has ended to the runs.jsonl.gz beside its folder."""
    _append(folder.parent / archive.NAME, read_run(folder))


def archive_runs(study: Path) -> None:
    """Adds every run directly under a folder that has ended, unless runs.jsonl.gz holds it as it is.

    Raises ConfigError for an archive that is damaged.
    """
    archived = {run.name: run for run in archived_runs(study / archive.NAME)}
    for run in (read_run(path.parent) for path in sorted(study.glob("*/config.yaml"))):
        old = archived.get(run.name)
        if not SET_ASIDE.fullmatch(run.name) and (old is None or may_replace(old, run)):
            _append(study / archive.NAME, run)


def may_replace(old: Run, new: Run) -> bool:
    """Whether a run ended otherwise than it is archived; one that is archived as finished stays so."""
    if old.status == "finished" != new.status:
        return False
    first, second = (
        {**run.summary, "overrides": None, "stages": {stage.get("name"): stage for stage in run.stages}}
        for run in (old, new)
    )
    return first != second


def _append(file: Path, run: Run) -> None:
    """What was measured stands in the folder too: neither a full disk nor a damaged archive may cost a run."""
    if run.status not in ENDED:
        return
    try:
        archive.append(file, leaf_rows(run))
    except (OSError, ValueError) as error:
        print(f"{run.name} was not added to {file}: {error}", file=sys.stderr)


def frame(runs: Iterable[Run]) -> pandas.DataFrame:
    """One row a leaf of a run's tree of stages: one of an ordinary run, one of each branch."""
    import pandas

    return pandas.DataFrame([row for run in runs for row in run.points()])


def counts(runs: Sequence[Run]) -> str:
    """`3 finished, 1 failed`."""
    found = [run.status for run in runs]
    return ", ".join(f"{found.count(one)} {one}" for one in dict.fromkeys(sorted(found))) or "no runs"


def table(runs: Sequence[Run]) -> None:
    """Prints the runs for a person."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=counts(runs), title_justify="left")
    shown.add_column("run", overflow="fold")
    for name in ("status", "loss", "bits/byte", "params", "tokens", "seconds"):
        shown.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for run in runs:
        row = run.row()
        color = COLORS.get(run.status, "red")
        shown.add_row(
            run.name,
            f"[{color}]{run.status}[/]",
            values(run.metrics, "loss"),
            values(run.metrics, "bits_per_byte"),
            *(f"{row[name]:,.0f}" if row[name] is not None else "" for name in ("params", "tokens", "seconds")),
        )
    Console(width=max(Console().width, 130)).print(shown)


def values(metrics: dict[str, float], what: str) -> str:
    """Validation values of one kind, one a data set."""
    found = [value for key, value in metrics.items() if key.startswith("val/") and key.endswith("/" + what)]
    return " ".join(f"{value:.4f}" for value in found if value is not None)
