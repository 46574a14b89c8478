"""The W&B logger: rows, tables, results of stages and artifacts. The client is imported only when a run uses it.

Its names are made for panels and tables that people read: the stage is last (`train/loss/docs`), so that the panels of
stages are neighbors; values of layers are means, loads of experts are one histogram, and the summary has at most 25
keys. metrics.jsonl and summary.json have everything.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kleiber.config.cost import add_costs
from kleiber.records.metrics import PER_EXPERT
from kleiber.records.summary_file import summary_or_warning
from kleiber.records.wandb_run import (
    Mode,
    address,
    choose_online,
    has_key,
    log_files,
    log_run,
    start_run,
    use_data,
    use_run,
)
from kleiber.training.loggers import StageLogger
from kleiber.training.mirrors import Axis, Mirror
from kleiber.types import Json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Histogram, Run

OF_LAYER = re.compile(r"((?:moe|stability)/[a-z_]+)(?:/\d+)+")  # metrics of single layers, heads or experts
LIVE = ("train/loss", "trainer/global_step", "tokens")  # in the summary while the run trains
TOTALS = ("tokens", "steps", "seconds", "tokens_per_s", "mfu", "peak_memory_bytes")
MOST_SCORES = 7  # in the summary


def readable(metrics: Mapping[str, float]) -> dict[str, float | Histogram]:
    """Returns a row for panels: means over layers, and a histogram and the largest of the loads of experts.

    Loads are relative to a uniform load, so that 1 is the mean of any number of experts.
    """
    row: dict[str, float | Histogram] = {}
    groups, loads = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for name, value in metrics.items():
        of_layer = OF_LAYER.fullmatch(name)
        if name.startswith(PER_EXPERT):
            loads[name.rpartition("/")[0]].append(value)
        elif of_layer is not None:
            groups[of_layer[1]].append(value)
        else:
            row[name] = value
    row |= {name: math.fsum(values) / len(values) for name, values in groups.items()}
    if loads:
        import wandb

        relative = [value * len(shares) for shares in loads.values() for value in shares]
        row |= {"moe/load": wandb.Histogram(relative), "moe/load_max_over_mean": max(relative)}
    return row


def chosen_scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores of a stage for the summary: losses first, at most MOST_SCORES."""
    ranked = sorted(metrics, key=lambda name: (not name.startswith("val/"), not name.endswith("/loss")))
    return {name: metrics[name] for name in ranked[:MOST_SCORES]}


class WandbMirror(Mirror):
    """W&B: rows, tables of text, and the results of the stages in the summary of the run.

    artifacts  what is logged as artifacts at the end of each stage: model
    """

    logger: WandbLogger

    def __init__(self, run: Run, run_config: Json, axis: Axis, artifacts: Sequence[str], folder: Path) -> None:
        from lightning.pytorch.loggers import WandbLogger

        super().__init__(WandbLogger(experiment=run), "W&B", run_config, axis)
        self.run, self.artifacts, self.folder = run, artifacts, folder
        x = "trainer/global_step" if axis == "steps" else "tokens"
        self.scores: dict[str, float] = {}  # in the summary
        for name in LIVE:
            run.define_metric(name, step_metric=None if name in ("trainer/global_step", "tokens") else x)
        run.define_metric("*", step_metric=x, summary="none")

    def prefixed(self, metric: str) -> str:
        """Returns the name of a metric with that of its stage behind it, in a run of several."""
        return metric if self.stage is None else f"{metric}/{self.stage}"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Sends a row."""
        if self.works:
            with self.guarded():
                row = {self.prefixed(name): value for name, value in readable(metrics).items()}
                self.run.log({**row, "trainer/global_step": self.place.steps(step or 0),
                              "tokens": self.place.tokens(step or 0)})  # fmt: skip

    def log_rows(self, key: str, columns: list[str], rows: list[list[str]]) -> None:
        """Sends a table of text."""
        if self.works:
            with self.guarded():
                self.logger.log_text(key, columns=columns, data=rows)

    def log_stage(self, entry: Json, stage: str | None) -> None:
        """Writes scores, tokens, FLOPs, speed and parameters of a stage to the summary, and logs artifacts."""
        if not self.works:
            return
        with self.guarded():
            self.stage = stage
            # Those of the latest stage come first, and take the places of earlier ones.
            scores = {self.prefixed(name): value for name, value in chosen_scores(entry["metrics"]).items()}
            kept = dict([*scores.items(), *self.scores.items()][:MOST_SCORES])
            for name in self.scores.keys() - kept.keys():
                del self.run.summary[name]
            self.scores = kept
            totals = {name: entry[name] for name in TOTALS if entry[name] is not None}
            totals |= {"flops/model": entry["flops"]["model"], **add_costs([entry["cost"]])}
            self.run.summary.update({**kept, "status": entry["status"], "checkpoint": entry["checkpoint"]})
            self.run.summary.update({f"total/{name}": value for name, value in totals.items()})
            self.run.summary.update({f"params/{name}": entry["params"][name] for name in ("total", "active")})
            use_data(self.run, f"{entry['data']['name']}-{entry['data']['hash']}", entry["data"])
            self._log_artifacts(entry)

    def use_base(self) -> None:
        """Records the run from which this one starts."""
        path = (self.run_config.get("init") or {}).get("path")
        for folder in [] if path is None else [Path(str(path)), Path(str(path)).parent]:
            if (folder / "config.yaml").is_file() and (run_id := summary_or_warning(folder).get("run_id")):
                with self.guarded():
                    use_run(self.run, folder.name, run_id)
                return

    def _log_artifacts(self, entry: Json) -> None:
        if "model" in self.artifacts and entry["checkpoint"]:
            checkpoint = self.folder / entry["checkpoint"]
            weights = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("weights/*")]
            files = {str(path.relative_to(checkpoint)): path for path in (*weights, checkpoint / "meta.json")}
            files["config.yaml"] = self.folder / "config.yaml"
            facts = {name: entry[name] for name in ("tokens", "metrics", "scores")} | {"stage": entry["name"]}
            log_files(self.run, self.folder.name, "model", files, facts, [entry["name"]])

    def finish(self, code: int) -> None:
        """Ends the W&B run with the exit code of the run."""
        with self.guarded():
            log_run(self.run, self.folder.name)
        with self.guarded():
            self.run.finish(exit_code=code)


def wandb_logger(
    folder: Path,
    run_id: str,
    run_name: str,
    run_group: str,
    run_config: Json,
    mode: Mode = "auto",
    project: str = "kleiber",
    entity: str | None = None,
    tags: list[str] | None = None,
    axis: Axis = "steps",
    artifacts: list[Literal["model"]] | None = None,
    console: bool = False,
    system_metrics: bool = False,
) -> StageLogger | None:
    """A W&B logger; None for mode=disabled.

    mode            auto: online if there is an API key and a server accepts the run. Otherwise `online` records offline
                    too, and prints why, so that no server can keep a run from starting
    axis            what the x axis of every chart counts at first; each row has both, steps and tokens
    artifacts       what each stage logs as artifacts: model, its last checkpoint with its scores
    console         also send what the run prints
    system_metrics  also measure CPU, memory and GPU every few seconds

    W&B gets the id of the run, so a resumed run continues its curves.
    """
    if mode == "disabled":
        return None
    run = start_run(
        folder, run_id, run_name, run_group, "train", online=choose_online(mode, folder), project=project,
        entity=entity, tags=tags, config=run_config, console=console, system_metrics=system_metrics,
    )  # fmt: skip
    logger = WandbMirror(run, run_config, axis, artifacts or (), folder)
    logger.use_base()
    hint = "" if mode == "offline" or has_key() else " (`wandb login` sets the key that online needs)"
    logger.description = f"W&B {address(run)}{hint}"
    return logger
