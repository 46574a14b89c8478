"""Loggers that write files into the folder of a run: metrics.jsonl, which every run has, and metrics.csv.

Rows are appended to the files. A run that resumes removes the rows after its checkpoint, so that the files end up like
those of an uninterrupted run. A file that somebody deletes or shortens while the run trains is reported and noted in
summary.json, because its rows are missing from then on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kleiber.records.directory_lock import is_replaced
from kleiber.records.files import replaced
from kleiber.records.lines import read_lines
from kleiber.records.metrics import METRICS_FILE, parse_row
from kleiber.records.regular_files import create, open_to_add_lines
from kleiber.records.terminal import print_line
from kleiber.types import Json

CSV_HEADER = "step,metric,value"


@dataclass(frozen=True)
class StageAxis:
    """Where the steps of a stage lie in its run, from the root of the tree of stages.

    steps_before   optimizer steps before the first step of the stage
    tokens_before  tokens before it
    batch_tokens   tokens of a step of the stage
    """

    steps_before: int = 0
    tokens_before: int = 0
    batch_tokens: int = 0

    def steps(self, step: int) -> int:
        """Returns the optimizer steps since the root, at a step of the stage."""
        return self.steps_before + step

    def tokens(self, step: int) -> int:
        """Returns the tokens since the root, at a step of the stage."""
        return self.tokens_before + step * self.batch_tokens


def print_warning(text: str) -> None:
    """Prints a warning to stderr."""
    print_line(f"warning: {text}", err=True)


class StageLogger(Logger):
    """A logger that knows the stage of the rows that it logs. Its methods do nothing until overridden.

    warn  reports that rows are missing; a run also notes it in summary.json
    """

    stage: str | None = None
    description: str | None = None  # what it writes and where, for the banner of the run
    warn: Callable[[str], None] = staticmethod(print_warning)

    def begin(self, stage: str | None, step: int, place: StageAxis | None = None) -> None:
        """Called when a stage begins (`step` 0) or resumes after `step`. `stage` is None in a run of one stage.

        place  where the steps of the stage lie in the run; None: at its beginning
        """
        self.stage = stage

    def expect_rows(self, step: int) -> None:
        """Called before `begin` where a stage resumes after `step`, and has logged scores before."""

    def log_stage(self, entry: Json, stage: str | None) -> None:
        """Called with the entry of a finished stage in summary.json; `stage` as in `begin`."""

    def finish(self, code: int) -> None:
        """Called once at the end of the run, with its exit code."""

    def log_rows(self, key: str, columns: list[str], rows: list[list[str]]) -> None:
        """Logs a table of text."""


class JsonlLogger(StageLogger):
    """Writes metrics.jsonl, one JSON object per row: {"step": 10, "train/loss": 3.2, ...}; all analyses read it.

    In a run of several stages each row has the key "stage".
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS_FILE
        self.written: os.stat_result | None = None  # the file after the last row

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: object, **__: object) -> None:
        """Does nothing, because config.yaml contains the config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        stage = {} if self.stage is None else {"stage": self.stage}
        self.append(json.dumps({**stage, "step": step, **metrics}) + "\n")

    def append(self, rows: str, header: str = "") -> None:
        """Appends rows to the file, and the header to a new one; reports rows that are missing.

        Raises FileNotFoundError where the folder was deleted or moved, and another one may stand in its place.
        """
        if is_replaced(self.path.parent):
            raise FileNotFoundError(f"{self.path.parent} no longer exists")
        self.report_missing_rows()
        with open_to_add_lines(self.path) as file:
            file.write(rows if file.tell() else header + rows)
            file.flush()
            self.written = os.fstat(file.fileno())

    def report_missing_rows(self) -> None:
        """Warns where the file is no longer what the last row was appended to."""
        if self.written is None:
            return
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            now = None
        if now is None or not os.path.samestat(now, self.written) or now.st_size < self.written.st_size:
            self.warn(f"{self.path.name} was deleted or replaced while the run trained: earlier rows are missing")
            self.written = None

    def expect_rows(self, step: int) -> None:
        """Warns where the file with the rows of earlier processes is missing."""
        if not self.path.exists():
            self.warn(f"{self.path.name} was missing when the run went on at step {step:,}: earlier rows are missing")

    def begin(self, stage: str | None, step: int, place: StageAxis | None = None) -> None:
        """Removes the rows of `stage` after `step`, all of them at step 0, and damaged rows. A kill loses no row."""
        self.stage = stage
        self.report_missing_rows()
        if self.path.exists():
            with replaced(self.path) as part, create(part) as file:
                file.writelines(f"{line}\n".encode() for line in self._rows_before(step))
            self.written = os.stat(self.path)

    def _rows_before(self, step: int) -> Iterator[str]:
        """The lines to keep when the stage resumes after `step`."""
        rows = read_lines(self.path, parse_row)
        return (line for line, row in rows if row.get("stage") != self.stage or 0 < step >= row["step"])


class CsvLogger(JsonlLogger):
    """Writes metrics.csv with the columns step, metric and value. Metrics begin with the name of their stage."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "metrics.csv"
        self.description = f"csv, in {self.path}"

    def expect_rows(self, step: int) -> None:
        """Does nothing: the run may have had other loggers before."""

    @property
    def name(self) -> str:
        return "csv"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line for each metric, and the header to a new file."""
        lines = (f"{step},{prefixed(self.stage, name)},{value!r}\n" for name, value in metrics.items())
        self.append("".join(lines), f"{CSV_HEADER}\n")

    def _rows_before(self, step: int) -> Iterator[str]:
        rows, prefix = read_lines(self.path, parse_csv_row), prefixed(self.stage, "")
        yield CSV_HEADER
        for line, (at, metric) in rows:
            if line != CSV_HEADER and (not metric.startswith(prefix) or 0 < step >= at):
                yield line


def parse_csv_row(line: str) -> tuple[int, str]:
    """The step and the metric in a line of metrics.csv; (0, "") for the header. Raises ValueError for other lines."""
    if line == CSV_HEADER:
        return 0, ""
    step, _, rest = line.partition(",")
    metric, _, value = rest.rpartition(",")
    float(value)
    return int(step), metric


def prefixed(stage: str | None, metric: str) -> str:
    """The metric's name after that of its stage, such as `1M/val/docs/loss`; alone in a run of one stage."""
    return metric if stage is None else f"{stage}/{metric}"
