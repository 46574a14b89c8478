"""A folder of runs as a list of Run, and as a DataFrame. Reads only what runs wrote: summary.json, and no torch.

A folder with a config and no summary is `missing`: a sweep planned it and never came to it. `running` without a live
lock reads as `killed`. What it cannot read it counts as missing, and it never repairs or deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleiber.chain import TOKENIZER, trains_tokenizer
from kleiber.folder import read_overrides, status
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
    def overrides(self) -> list[str]:
        """The overrides of its command, without those of Hydra. Raises OSError where they were not kept."""
        return [line for line in read_overrides(self.folder) if not line.startswith("hydra.")]

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer that the run trained and kept, None where it did not train one."""
        kept = self.folder / TOKENIZER
        return kept if kept.is_dir() else None

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


@dataclass(frozen=True)
class PlannedRun(Run):
    """A run of a dry run: nothing of it is there, and it counts as finished, so that what starts from it is planned.

    config, told  its resolved config and the overrides of its command
    """

    config: dict[str, Any]
    told: list[str]

    @property
    def overrides(self) -> list[str]:
        return self.told

    @property
    def tokenizer(self) -> Path | None:
        return self.folder / TOKENIZER if trains_tokenizer(self.config) else None


def read_runs(folder: Path) -> list[Run]:
    """Every run at or under `folder`, in order of path. Raises FileNotFoundError when there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of runs")
    homes = sorted({path.parent for name in ("config.yaml", "summary.json") for path in folder.rglob(name)})
    return [read_run(home) for home in homes if ".part-" not in home.name and "wandb" not in home.parts]


def read_run(folder: Path) -> Run:
    return Run(folder, status(folder), read(folder / "summary.json") or {})


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
