"""Loggers that mirror a run to another tool: TensorBoard, MLflow, and any logger of Lightning; W&B is in wandb_mirror.

A mirror gets the config of the run, its rows, its text samples and the results of its stages. In a run of several
stages the names of metrics begin with that of the stage, and x counts the steps, or the tokens, of all stages from the
root of the tree, so no stage overwrites another. What goes wrong in a mirror is printed once, and never ends the run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning.pytorch.loggers import Logger

from kleiber.config.errors import ConfigError, ExitCode
from kleiber.config.url_secrets import hide_secrets, reveal_secrets
from kleiber.records.locks import wait_for_lock
from kleiber.records.regular_files import refuse_link
from kleiber.records.terminal import print_line
from kleiber.training.loggers import StageAxis, StageLogger, prefixed
from kleiber.types import Json
from kleiber.types.access import OutsidePath

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

Axis = Literal["steps", "tokens"]


class Mirror(StageLogger):
    """Sends what a run logs to a logger of Lightning.

    label       name of the tool, for messages
    run_config  the config of the run
    axis        what x counts: steps or tokens, from the root of the tree of stages
    package     that the tool needs; a config with it is refused where it is not installed
    """

    package: ClassVar[str | None] = None

    def __init__(self, logger: Logger | None, label: str, run_config: Json, axis: Axis = "steps") -> None:
        super().__init__()
        self.logger, self.label, self.run_config, self.axis = logger, label, run_config, axis
        self.place, self.works = StageAxis(), True

    @property
    def name(self) -> str:
        return self.label

    @property
    def version(self) -> str:
        return ""

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Prints an error, after which the run goes on without this mirror."""
        try:
            yield
        except Exception as error:  # each tool and its network raise classes of their own
            self.works = False
            reason = str(error).partition("\n")[0] or type(error).__name__
            print_line(f"{self.label}: {reason}; this run is no longer logged there", err=True)

    def begin(self, stage: str | None, step: int, place: StageAxis | None = None) -> None:
        """Continues with the rows of a stage, whose steps lie at `place` on the axis."""
        self.stage, self.place = stage, place or StageAxis()

    def x(self, step: int) -> int:
        """Returns the place of a step of the stage on the axis."""
        return self.place.steps(step) if self.axis == "steps" else self.place.tokens(step)

    def log_hyperparams(self, *_: object, **__: object) -> None:
        """Does nothing: `log_config` sends the config once."""

    def log_config(self) -> None:
        """Sends the config of the run."""
        if self.works and self.logger is not None:
            with self.guarded():
                self.logger.log_hyperparams(self.run_config)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Sends a row."""
        if self.works and self.logger is not None:
            with self.guarded():
                self.send({self.prefixed(name): value for name, value in metrics.items()}, step or 0)

    def prefixed(self, metric: str) -> str:
        """Returns the name of a metric in the tool."""
        return prefixed(self.stage, metric)

    def send(self, metrics: dict[str, float], step: int) -> None:
        """Sends a row whose names are those of the tool. `step` is that of the stage."""
        assert self.logger is not None
        self.logger.log_metrics(metrics, self.x(step))

    def finish(self, code: int) -> None:
        """Writes what the logger holds back, and ends the run in the tool."""
        if self.works and self.logger is not None:
            with self.guarded():
                self.logger.save()
                self.logger.finalize("success" if code == ExitCode.DONE else "failed")


def mirror_logger(logger: Logger, key: str, run_config: Json) -> Mirror:
    """Returns a mirror of any logger of Lightning, or of an own package, that stands in the config at `key`."""
    mirror = Mirror(logger, key, run_config)
    mirror.description = f"{type(logger).__name__}, in {logger.save_dir or 'its own place'}"
    mirror.log_config()
    return mirror


class TensorBoard(Mirror):
    """Event files for TensorBoard in FOLDER/tensorboard: a folder for each stage, so that stages are drawn together.

    A stage that resumes hides the events after its checkpoint. Needs the extra `tensorboard`.

    axis  what x counts: steps or tokens, from the root of the tree of stages
    """

    package: ClassVar[str] = "tensorboard"
    logger: TensorBoardLogger | None

    def __init__(self, folder: Path, run_config: Json, axis: Axis = "steps") -> None:
        super().__init__(None, "TensorBoard", run_config, axis)
        self.folder = folder
        self.description = f"TensorBoard, in {folder / 'tensorboard'}"

    def begin(self, stage: str | None, step: int, place: StageAxis | None = None) -> None:
        """Opens the event files of a stage."""
        from lightning.pytorch.loggers import TensorBoardLogger

        super().begin(stage, step, place)
        if self.logger is not None:
            self.logger.finalize("success")
        refuse_link(self.folder / "tensorboard")
        purge = self.x(step) + 1 if step else 0
        with self.guarded():
            self.logger = TensorBoardLogger(
                self.folder, "tensorboard", stage or "", default_hp_metric=False, purge_step=purge
            )
            text = json.dumps(self.run_config, indent=2, ensure_ascii=False)
            self.logger.experiment.add_text("config", f"```json\n{text}\n```", self.x(step))

    def prefixed(self, metric: str) -> str:
        """Returns the name itself, which is the same in the folder of every stage."""
        return metric

    def log_rows(self, key: str, columns: list[str], rows: list[list[str]]) -> None:
        """Writes a table of text."""
        if self.works and self.logger is not None:
            with self.guarded():
                self.logger.experiment.add_text(key, markdown_table(columns, rows))

    def log_stage(self, entry: Json, stage: str | None) -> None:
        """Writes config and scores for the page HPARAMS, on which runs are compared."""
        if self.works and self.logger is not None:
            with self.guarded():
                results = {f"final/{name}": value for name, value in entry["metrics"].items()}
                self.logger.log_hyperparams(self.run_config, results)


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    table = [columns, ["---"] * len(columns), *rows]
    return "\n".join(" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in table)


class MLflow(Mirror):
    """MLflow: rows, the config as parameters, and tables of text as artifacts.

    The experiment has the name of the sweep; a resumed run continues its MLflow run. Needs the extra `mlflow`. Raises
    ConfigError when the server does not answer.

    tracking_uri  of the server; None: MLFLOW_TRACKING_URI, else the database mlflow.db beside the folders of the sweeps
    tags          of the MLflow run
    axis          what x counts: steps or tokens, from the root of the tree of stages
    """

    package: ClassVar[str] = "mlflow"
    logger: MLFlowLogger

    def __init__(
        self,
        folder: Path,
        run_id: str,
        run_name: str,
        run_group: str,
        run_config: Json,
        tracking_uri: OutsidePath | None = None,
        tags: dict[str, str] | None = None,
        axis: Axis = "steps",
    ) -> None:
        from lightning.pytorch.loggers import MLFlowLogger

        home = folder.absolute().parents[1]
        server = reveal_secrets(tracking_uri) if tracking_uri else os.environ.get("MLFLOW_TRACKING_URI")
        place = server or f"sqlite:///{home / 'mlflow.db'}?timeout=60"  # seconds to wait for other cells that write
        for name in ("alembic", "mlflow", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)  # it reports each table of a new database
        try:
            # Cells of a sweep begin at the same time, and only one of them can create the database and the experiment.
            with wait_for_lock(home / ".mlflow.lock", lambda: None):
                logger = MLFlowLogger(
                    experiment_name=run_group, run_name=run_name, tracking_uri=place,
                    run_id=_mlflow_run(place, run_group, run_id),
                    tags={**(tags or {}), "kleiber.run_id": run_id},
                    artifact_location=None if server else f"{home / 'mlruns'}",
                )  # fmt: skip
                number = logger.run_id
        except ModuleNotFoundError:
            raise
        except Exception as error:  # of the network, of the database and of MLflow
            reason = hide_secrets(f"{place} cannot be used: {error}")
            raise ConfigError(f"logger.mlflow.tracking_uri={reason}") from error
        super().__init__(logger, "MLflow", run_config, axis)
        self.description = f"MLflow run {number} in {hide_secrets(place).partition('?')[0]}"
        self.log_config()

    def log_rows(self, key: str, columns: list[str], rows: list[list[str]]) -> None:
        """Sends a table of text as an artifact, such as samples.md."""
        if self.works and self.logger.run_id is not None:
            with self.guarded():
                name = f"{self.prefixed(key)}.md"
                self.logger.experiment.log_text(self.logger.run_id, markdown_table(columns, rows), name)


def _mlflow_run(place: str, experiment: str, run_id: str) -> str | None:
    """Returns MLflow's number of the run that an earlier process of this run began; None for a new run."""
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(place)
    held = client.get_experiment_by_name(experiment)
    if held is None:
        return None
    runs = client.search_runs([held.experiment_id], f"tags.`kleiber.run_id` = '{run_id}'", max_results=1)
    return runs[0].info.run_id if runs else None
