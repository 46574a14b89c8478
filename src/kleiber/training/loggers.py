"""Loggers: metrics.jsonl, which every run writes, metrics.csv, and W&B, whose failures never end a run.

Rows are appended to the files. A run that resumes removes the rows after its checkpoint, so that the files end up like
those of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kleiber.records.files import read_lines, write_text
from kleiber.records.summary import NAME, parse_row
from kleiber.types import Json

CSV_HEADER = "step,metric,value"
TIMEOUT = 1.5  # seconds to wait for a server before the run continues without it


class StageLogger(Logger):
    """A logger that knows the stage of the rows that it logs. Its methods do nothing until overridden."""

    stage: str | None = None
    description: str | None = None  # what it writes and where, for the banner of the run

    def begin(self, stage: str | None, step: int) -> None:
        """Called when a stage begins (`step` 0) or resumes after `step`. `stage` is None in a run of one stage."""
        self.stage = stage

    def log_rows(self, key: str, columns: list[str], rows: list[list[str]]) -> None:
        """Logs a table of text."""


class Rows(StageLogger):
    """Writes metrics.jsonl, one JSON object per row: {"step": 10, "train/loss": 3.2, ...}; all analyses read it.

    In a run of several stages each row has the key "stage".
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / NAME

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
        with open(self.path, "a") as file:
            file.write(json.dumps({**stage, "step": step, **metrics}) + "\n")

    def begin(self, stage: str | None, step: int) -> None:
        """Removes the rows of `stage` after `step`, all of them at step 0, and damaged rows. A kill loses no row."""
        self.stage = stage
        if self.path.exists():
            write_text(self.path, "".join(f"{line}\n" for line in self._rows_before(step)))

    def _rows_before(self, step: int) -> list[str]:
        """The lines to keep when the stage resumes after `step`."""
        rows = read_lines(self.path, parse_row)
        return [line for line, row in rows if row.get("stage") != self.stage or 0 < step >= row["step"]]


class CsvLogger(Rows):
    """Writes metrics.csv with the columns step, metric and value. Metrics begin with the name of their stage."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "metrics.csv"
        self.description = f"csv, in {self.path}"

    @property
    def name(self) -> str:
        return "csv"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a line for each metric, and the header to a new file."""
        new = not self.path.exists()
        with open(self.path, "a") as file:
            if new:
                file.write(f"{CSV_HEADER}\n")
            file.writelines(f"{step},{prefixed(self.stage, name)},{value!r}\n" for name, value in metrics.items())

    def _rows_before(self, step: int) -> list[str]:
        rows = read_lines(self.path, parse_csv_row)
        prefix = prefixed(self.stage, "")
        kept = [line for line, (at, metric) in rows if not metric.startswith(prefix) or 0 < step >= at]
        return [CSV_HEADER, *(line for line in kept if line != CSV_HEADER)]


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


def wandb_logger(
    folder: Path,
    run_id: str,
    run_name: str,
    group: str,
    run_config: Json,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    project: str = "kleiber",
    entity: str | None = None,
    tags: list[str] | None = None,
) -> StageLogger | None:
    """A W&B logger; None for mode=disabled.

    With `auto` it is online only if there is an API key and the server answers within 1.5 s. Without an answer `online`
    also records offline and prints why, so that no server can keep a run from starting. W&B gets the id of the run, so
    a resumed run continues its curves.
    """
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    offline = mode == "offline"
    reason = None if offline else _unreachable()
    if reason:
        offline = True
        if mode == "online" or _key():
            print(f"W&B: {reason}; recording offline in {folder / 'wandb'}", file=sys.stderr)
    import wandb as client
    from lightning.pytorch.loggers import WandbLogger

    settings = client.Settings(init_timeout=30, console="off", x_disable_stats=True, silent=True)
    # Not by WandbLogger's own init, which passes settings that make this client warn.
    run = client.init(
        dir=folder, id=run_id, name=run_name, group=group, project=project, entity=entity, tags=tags, config=run_config,
        job_type="train", mode="offline" if offline else "online", resume="allow", settings=settings,
    )  # fmt: skip
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step")

    class StageWandbLogger(WandbLogger, StageLogger):
        """Prefixes metrics with their stage in a run of several stages, because steps begin again in each."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            super().log_metrics({prefixed(self.stage, name): value for name, value in metrics.items()}, step)

        def log_rows(self, key: str, columns: list[str], rows: list[list[str]]) -> None:
            self.log_text(key, columns=columns, data=rows)

    logger = StageWandbLogger(experiment=run)
    logger.description = f"W&B {'offline' if offline else 'online'}, in {folder / 'wandb'}"
    return logger


def _key() -> bool:
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return urlparse(_server()).hostname in netrc.netrc().hosts
    return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _unreachable() -> str | None:
    """Why W&B cannot be used now, or None."""
    if not _key():
        return "no API key (set WANDB_API_KEY to mirror runs online)"
    host = urlparse(_server())
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=TIMEOUT).close()
    except OSError as error:
        return f"{host.hostname} does not answer ({error})"
    return None
