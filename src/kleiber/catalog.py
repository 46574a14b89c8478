"""A folder of runs as a list of Run, and as a DataFrame. Reads only what runs wrote: summary.json, and no torch.

A folder with a config and no summary is `missing`: a sweep planned it and never came to it. `running` without a live
lock reads as `killed`. What it cannot read it counts as missing, and it never repairs or deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleiber.folder import status
from kleiber.summary import read

if TYPE_CHECKING:
    import pandas

COLORS = {"finished": "green", "running": "cyan", "missing": "yellow"}


@dataclass(frozen=True)
class Run:
    """One run as its summary tells it. Losses are in nats per token, of the last finished stage, by data set."""

    folder: Path
    status: str
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stage(self) -> dict[str, Any]:
        """The last stage that the run wrote down, or an empty one."""
        stages = self.summary.get("stages") or []
        return stages[-1] if stages else {}

    @property
    def metrics(self) -> dict[str, float]:
        return self.stage.get("metrics") or {}

    def row(self) -> dict[str, Any]:
        """One flat row: what identifies the run, its size, its cost and every metric of its last stage."""
        params, flops = self.stage.get("params") or {}, self.stage.get("flops") or {}
        return {
            "run": self.name,
            "status": self.status,
            "error": self.summary.get("error"),
            "seed": self.summary.get("seed"),
            "overrides": " ".join(self.summary.get("overrides") or []),
            "params": params.get("total"),
            "active": params.get("active"),
            "non_embedding": params.get("non_embedding"),
            "tokens": self.stage.get("tokens"),
            "flops": flops.get("model"),
            "seconds": self.summary.get("seconds"),
            **self.metrics,
        }


def read_runs(folder: Path) -> list[Run]:
    """Every run at or under `folder`, in order of path. Raises FileNotFoundError when there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of runs")
    homes = sorted({path.parent for name in ("config.yaml", "summary.json") for path in folder.rglob(name)})
    return [read_run(home) for home in homes if ".part-" not in home.name and "wandb" not in home.parts]


def read_run(folder: Path) -> Run:
    return Run(folder, status(folder), read(folder / "summary.json") or {})


def frame(runs: Iterable[Run]) -> pandas.DataFrame:
    """One row a run."""
    import pandas

    return pandas.DataFrame([run.row() for run in runs])


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
