"""One run in this process, from a composed config and its folder to a summary: plan, train, evaluate, print a table.

However the run ends, summary.json records its status, and the loggers get the exit code. The launcher
chooses the folder and starts the ranks.

The metrics that callbacks of Lightning monitor are checked before anything is trained.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ConfigError, ExitCode, Preempted, RankLost, Status, did_you_mean
from kleiber.config.system_errors import describe
from kleiber.config.targets import argument
from kleiber.evals.task_scores import bytes_per_target
from kleiber.records.continuation import continues_folder
from kleiber.records.directory_lock import is_replaced
from kleiber.records.environment import cpu_name
from kleiber.records.evaluations import missing_evaluations
from kleiber.records.folder import config_hash
from kleiber.records.progress import activity
from kleiber.records.regular_files import make_folder
from kleiber.records.summary import Summary
from kleiber.records.terminal import columns, print_line, print_traceback
from kleiber.runs.stage_tree import Stage
from kleiber.types import Config, Json

if TYPE_CHECKING:
    from kleiber.runs.plan import ModelBuilder, Plan
    from kleiber.runs.stage_tree import Stage, Tree
    from kleiber.training.loggers import StageLogger
    from kleiber.training.trainer import Local


def check_monitors(stages: Sequence[Stage]) -> None:
    """Raises ConfigError where a callback such as EarlyStopping monitors what a stage does not measure."""
    for stage in stages:
        names = stage_metrics(stage)
        for key, monitor in monitors(stage.config):
            if monitor not in names:
                where = f" of the stage {stage.name}" if len(stages) > 1 else ""
                raise ConfigError(
                    f"callbacks.{key}.monitor={monitor} must be a metric that validations{where} measure: "
                    f"{', '.join(names)}.{did_you_mean(monitor, names)} To end training at a loss, set "
                    "budget.stop_at_loss=1.6"
                )


def monitors(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yields key and monitored metric of each callback that is not kleiber's and monitors one."""
    nodes = OmegaConf.to_container(cfg.callbacks, resolve=True)
    assert isinstance(nodes, dict)
    for key, node in nodes.items():
        if isinstance(node, dict) and not str(node["_target_"]).startswith("kleiber."):
            monitor = argument(node, "monitor")
            if isinstance(monitor, str):
                yield str(key), monitor


def stage_metrics(stage: Stage) -> list[str]:
    """Returns the metrics of every validation of a stage: loss, bits per byte of text, and the main metric."""
    objective, names = stage.plan.objective, list[str]()
    for task, held_out in stage.plan.corpus.validation.items():
        bits = [] if bytes_per_target(objective, held_out) is None else ["bits_per_byte"]
        names += [f"val/{task}/{metric}" for metric in dict.fromkeys(["loss", *bits, objective.metric])]
    return names


def train(config: Config, folder: Path, overrides: Sequence[str] = ()) -> int:
    """Trains the run of a resolved config in `folder`. Every rank calls it.

    Returns the exit code: 0 finished, 1 failed or diverged, 75 preempted, 130 interrupted. Raises ValueError for what
    the user can correct, such as a setting that does not fit the data, before anything is trained.
    """
    from kleiber.config.targets import build
    from kleiber.runs.equal_ranks import check_equal, check_equal_configs
    from kleiber.runs.inputs import check_inputs, run_inputs, start_inputs
    from kleiber.runs.stage import run_tree
    from kleiber.runs.stage_tree import Tree
    from kleiber.training.step import rank_errors

    hardware = build(config["trainer"])
    hardware.prepare()
    with activity("planning the stages"), rank_errors():
        timeout = config["trainer"].get("rank_timeout")
        if hardware.world_size > 1:  # before models of other sizes are built together
            check_equal_configs(config)
            check_equal(start_inputs(OmegaConf.create(dict(config))), timeout)
        stages = plan_stages(config, hardware)
        inputs = run_inputs(stages)
        check_equal(inputs, timeout)
    summary = Summary(folder)
    check_inputs(summary.values.get("inputs") or {}, inputs, folder)
    tree = Tree(stages, folder, hardware, [], summary.finished_stages())
    if is_changed(config, summary):
        prepare_continuation(tree)
    tree.verify()
    if hardware.rank != 0:
        try:
            run_tree(tree, lambda _: None)
        except Preempted as reason:
            return reason.status.exit_code
        return ExitCode.DONE
    return RankZeroRun(config, tree, summary, overrides, inputs).run()


def is_changed(config: Config, summary: Summary) -> bool:
    """Whether resume=PATH continues a run with another config than that of its last process."""
    new_hash = config_hash(config)[:8]
    return continues_folder(config) and summary.values.get("config_hash", new_hash) != new_hash


def prepare_continuation(tree: Tree) -> None:
    """Lets a run continue with another budget: the finished stage of a run that has no other one trains on.

    Raises ConfigError where no step is left to train, and where a finished stage from which others start would have
    another number of steps.
    """
    from kleiber.training import checkpoint

    only_stage = len(tree.stages) == 1
    for stage in tree.stages:
        record, end = tree.done.get(stage.name), stage.plan.stop_step
        trained = record["steps"] if record else checkpoint.newest_step(tree.checkpoints(stage.name))
        if record and only_stage and trained < end:
            del tree.done[stage.name]
        elif (trained != end and record.get("stopped_at_loss") is None) if record else trained >= end:
            where = "it" if only_stage else f"its stage {stage.name}"
            raise ConfigError(
                f"resume={tree.folder}: {where} has trained {trained:,} steps, and would end after {end:,}: set a "
                "larger budget or trainer.max_steps, or keep those of the run in this folder"
            )
    if len(tree.done) == len(tree.stages):
        raise ConfigError(
            f"resume={tree.folder} has finished all steps of this config: set a larger budget or trainer.max_steps"
        )


def plan_stages(config: Config, hardware: Local, model_of: ModelBuilder | None = None) -> list[Stage]:
    """Plans the stages of a run, as its config node `stages` divides it.

    model_of  as in `plan.make_plan`, for a plan that only estimates costs

    Raises ValueError when a stage does not fit its data or the plan.
    """
    from kleiber.config.targets import build
    from kleiber.runs.plan import make_plan
    from kleiber.runs.stage_tree import Layout

    cfg = OmegaConf.create(dict(config))

    def plan(stage: DictConfig, before: Plan | None) -> Plan:
        return make_plan(stage, hardware, before, model_of)

    checkpoints = (cfg.callbacks or {}).get("checkpoints")
    if checkpoints is not None and checkpoints.get("sharded") and not hardware.shards_weights:
        raise ValueError(
            "callbacks.checkpoints.sharded=true needs trainer=fsdp, whose ranks have shards of the weights: remove it, "
            "or set trainer=fsdp"
        )
    layout: Layout = Layout() if cfg.stages is None else build(cfg.stages)
    stages = layout.stages(cfg, plan)
    check_monitors(stages)
    return stages


class RankZeroRun:
    """Rank 0 of a run: it alone writes the summary, logs and prints."""

    def __init__(
        self, config: Config, tree: Tree, summary: Summary, overrides: Sequence[str], inputs: dict[str, str]
    ) -> None:
        self.config, self.tree, self.summary = config, tree, summary
        self.overrides, self.inputs = list(overrides), inputs
        self.folder, self.hardware = tree.folder, tree.hardware
        self.loggers: list[StageLogger] = []

    def run(self) -> int:
        """Trains the run, writes its status, ends its loggers, and returns the exit code."""
        make_folder(self.folder)
        self.summary.start(**self.initial_summary())
        code = ExitCode.FAILED
        try:
            code = self._train_stages()
        finally:
            for logger in self.loggers:
                logger.finish(code)
        return code

    def initial_summary(self) -> Json:
        """Returns the fields of summary.json that are known before training."""
        import hashlib

        import torch

        started = self.summary.values.get("started") or ""
        identity = f"{self.config['name']}/{self.folder.name}/{started or os.urandom(8).hex()}"
        changes: Json = {"continued": True, "stages": list(self.tree.done.values())}
        return {
            **(changes if is_changed(self.config, self.summary) else {}),
            "run_id": self.summary.values.get("run_id") or hashlib.sha256(identity.encode()).hexdigest()[:12],
            "name": self.config["name"],
            "study": self.config["name"] if self.config["study"] is not None else None,
            "config_hash": config_hash(self.config)[:8],
            "overrides": self.overrides,
            "seed": self.config["seed"],
            "inputs": self.inputs,
            "machine": {
                "cpu": cpu_name(),
                "threads": torch.get_num_threads(),
                "device": self.hardware.accelerator,
                "world_size": self.hardware.world_size,
            },
        }

    def _train_stages(self) -> int:
        from kleiber.runs.recorded_config import keep_tokenizer
        from kleiber.runs.stage import run_tree
        from kleiber.training.step import Diverged

        try:
            with activity("starting the loggers"):
                self.loggers = self._make_loggers()
            self.tree.loggers = [*self.loggers]
            first = self.tree.stages[0]
            keep_tokenizer(first.plan.corpus.tokenizer, first.config, self.folder)
            self._print_banner()
            run_tree(self.tree, self._write_stage)
            self._complete_evaluations()
            self.summary.update(status=Status.FINISHED)
        except Diverged as error:
            self.summary.update(status=Status.DIVERGED, error=str(error))
            print_line(f"the loss diverged at {error}; checkpoints from before are in {self.folder}", err=True)
            return ExitCode.FAILED
        except Preempted as reason:
            self.summary.update(status=reason.status, error=str(reason))
            print_line(f"{reason.status} by {reason}; run the same command again to continue {self.folder}", err=True)
            return reason.status.exit_code
        except (ConfigError, RankLost) as error:  # the caller prints it in one line
            self.summary.update(status=Status.FAILED, error=str(error))
            raise
        except Exception as error:
            return self._report_failure(error)
        from kleiber.records.closing_table import closing_table

        closing_table(self.folder)
        return ExitCode.DONE

    def _complete_evaluations(self) -> None:
        """Runs the evaluations of which a run that was finished before has no scores."""
        if missing_evaluations(self.folder, self.config):
            from kleiber.runs.evaluate import complete_evaluations

            complete_evaluations(self.folder, self.config)
            self.summary = Summary(self.folder)

    def _print_banner(self) -> None:
        from kleiber.runs.banner import banner_lines

        descriptions = [logger.description for logger in self.loggers]
        loggers = [text for text in descriptions if text is not None]
        title = f"{self.config['name']}/{self.folder.name}"
        overrides = None if self.config["study"] or self.config["design"] else self.overrides
        print_line("\n".join(banner_lines(title, self.tree, loggers, overrides, columns(err=True))), err=True)

    def _report_failure(self, error: Exception) -> int:
        """Prints an error, writes it to the summary, and returns the exit code."""
        if is_replaced(self.folder) or not (self.folder / "config.yaml").is_file():
            print_line(f"kleiber: {self.folder} was deleted or moved while the run trained; nothing is saved", err=True)
            return ExitCode.FAILED
        if text := describe(error):
            print_line(f"kleiber: {text}, then run the same command again to continue {self.folder}", err=True)
        else:
            print_traceback(error)
        try:
            self.summary.update(status=Status.FAILED, error=f"{type(error).__name__}: {error}")
        except OSError as cause:
            print_line(f"kleiber: {self.summary.path} cannot be written ({cause.strerror})", err=True)
        return ExitCode.FAILED

    def _make_loggers(self) -> list[StageLogger]:
        from kleiber.config.targets import build
        from kleiber.training.loggers import JsonlLogger, StageLogger

        values = self.summary.values
        available = {
            "folder": self.folder,
            "save_dir": str(self.folder),  # of loggers of Lightning
            "run_id": values["run_id"],
            "run_name": self.folder.name,
            "run_group": self.config["name"],
            "run_config": dict(self.config),
        }
        loggers: list[StageLogger] = [JsonlLogger(self.folder)]
        for key, node in (self.config["logger"] or {}).items():
            try:
                logger = build(node, **available)
            except ModuleNotFoundError as error:
                raise ConfigError(f"logger.{key} needs a package that is not installed: {error}") from error
            if isinstance(logger, StageLogger):
                loggers.append(logger)
            elif logger is not None:
                from kleiber.training.mirrors import mirror_logger

                loggers.append(mirror_logger(logger, f"logger.{key}", available["run_config"]))
        for logger in loggers:
            logger.warn = self.note_warning
        return loggers

    def note_warning(self, text: str) -> None:
        """Prints a warning and notes it in summary.json, which the closing table shows."""
        print_line(f"warning: {self.folder}: {text}", err=True)
        self.summary.update(warnings=[*self.summary.values.get("warnings", []), text])

    def _write_stage(self, stage: Json) -> None:
        """Writes the entry of a finished stage to summary.json and sends it to the loggers."""
        from kleiber.config.stages import SINGLE_STAGE

        metrics = {task.name: task.objective.metric for task in self.tree.tasks}
        self.summary.put_stage(stage, metrics if stage["start_metrics"] else None)
        name = None if stage["name"] == SINGLE_STAGE else stage["name"]
        for logger in self.loggers:
            logger.log_stage(stage, name)
