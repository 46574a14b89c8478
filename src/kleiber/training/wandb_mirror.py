"""The W&B logger: rows, tables, results of stages and artifacts. The client is imported only when a run uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kleiber.config.cost import add_costs
from kleiber.records.files import write_json
from kleiber.records.wandb_run import Mode, choose_online, has_key, log_files, start_run
from kleiber.training.loggers import StageLogger, prefixed
from kleiber.training.mirrors import Axis, Mirror
from kleiber.types import Json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Run


class WandbMirror(Mirror):
    """W&B: rows, tables of text, and the results of the stages in the summary of the run.

    artifacts  what is logged as artifacts at the end of each stage: data, model
    """

    logger: WandbLogger

    def __init__(self, run: Run, run_config: Json, axis: Axis, artifacts: Sequence[str], folder: Path) -> None:
        from lightning.pytorch.loggers import WandbLogger

        super().__init__(WandbLogger(experiment=run), "W&B", run_config, axis)
        self.run, self.artifacts, self.folder = run, artifacts, folder
        x = "trainer/global_step" if axis == "steps" else "tokens"
        for name in ("trainer/global_step", "tokens"):
            run.define_metric(name)
        run.define_metric("*", step_metric=x)

    def send(self, metrics: dict[str, float], step: int) -> None:
        """Sends a row with the step and the tokens, from the root of the tree."""
        self.logger.log_metrics({**metrics, "tokens": self.place.tokens(step)}, self.place.steps(step))

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
            self.run.summary.update({prefixed(stage, key): value for key, value in entry["metrics"].items()})
            costs = {f"flops/{name}": value for name, value in entry["flops"].items()}
            names = ("tokens", "unique_tokens", "steps", "seconds", "tokens_per_s", "mfu", "peak_memory_bytes")
            costs |= {name: entry[name] for name in names if entry[name] is not None}
            costs |= add_costs([entry["cost"]])
            self.run.summary.update({f"stage/{prefixed(stage, key)}": value for key, value in costs.items()})
            # Of the latest stage, under names that all runs share.
            self.run.summary.update({f"total/{name}": value for name, value in costs.items()})
            self.run.summary.update({f"params/{name}": count for name, count in entry["params"].items()})
            self.run.summary.update({"status": entry["status"], "checkpoint": entry["checkpoint"]})
            self._log_artifacts(entry)

    def _log_artifacts(self, entry: Json) -> None:
        if "data" in self.artifacts:
            data = entry["data"]
            place = self.folder / "wandb" / f"data-{data['hash']}.json"
            write_json(place, data)
            log_files(self.run, f"{data['name']}-{data['hash']}", "dataset", {"data.json": place}, data, [])
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
    artifacts: list[Literal["data", "model"]] | None = None,
    console: bool = False,
    system_metrics: bool = False,
) -> StageLogger | None:
    """A W&B logger; None for mode=disabled.

    mode            auto: online if there is an API key and a server accepts the run. Otherwise `online` records offline
                    too, and prints why, so that no server can keep a run from starting
    axis            what the x axis of every chart counts at first; each row has both, steps and tokens
    artifacts       what each stage logs as artifacts: data (its name, size and checksums), model (its last checkpoint)
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
    hint = "" if mode == "offline" or has_key() else " (`wandb login` sets the key that online needs)"
    logger.description = f"W&B {'offline' if run.offline else 'online'}, in {folder / 'wandb'}{hint}"
    return logger
