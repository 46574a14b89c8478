"""One run, from a composed config and a folder to a summary: plan, train, evaluate, write down, show.

However it ends, summary.json says how, and the W&B run is finished with the same verdict. It makes no ranks and chooses
no folder: the launcher does.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ConfigError, ExitCode, Status
from kleiber.records.folder import config_hash
from kleiber.records.summary import Summary, cpu_name

if TYPE_CHECKING:
    from kleiber.runs.stage import Tree
    from kleiber.runs.stage_tree import Stage


def train(cfg: DictConfig, folder: Path, overrides: list[str] | None = None) -> int:
    """Runs `cfg` in `folder`; returns the exit code: 0 finished, 1 failed or diverged, 75 preempted, 130 interrupted.

    Raises ValueError for what a user can mend (bad data, a setting that does not fit), before any training.
    """
    from kleiber.config.signatures import build
    from kleiber.runs.stage import Tree, run_tree

    hardware = build(cfg.trainer)
    hardware.prepare()
    stages = lay_out(cfg, hardware)
    tree = Tree(stages, folder, hardware, [], Summary(folder).done())
    tree.verify()
    if hardware.rank != 0:
        from kleiber.training.callbacks.fault_tolerance import Preempted

        try:
            run_tree(tree, lambda _: None)
        except Preempted:
            return ExitCode.PREEMPTED
        return ExitCode.DONE
    return RankZeroRun(cfg, tree, overrides or []).run()


def lay_out(cfg: DictConfig, hardware: Any, model_of: Any = None) -> list[Stage]:
    """The stages of the run, as the `stages` group has them. Raises ValueError where they do not fit the plan.

    model_of  as in `plan.make_plan`, for stages that are priced alone
    """
    from kleiber.config.signatures import build
    from kleiber.runs.plan import make_plan
    from kleiber.runs.stage_tree import Layout

    def plan(config: DictConfig, before: Any) -> Any:
        return make_plan(config, hardware, before, model_of)

    if cfg.stages is None:
        return Layout().stages(cfg, plan)
    if cfg.callbacks is None or cfg.callbacks.checkpoints is None:
        raise ValueError("stages hand state over by checkpoint: callbacks.checkpoints=null leaves none, so remove it")
    layout: Layout = build(cfg.stages)
    return layout.stages(cfg, plan)


class RankZeroRun:
    """Rank 0 of a run: the only one that writes the summary, talks to W&B and prints."""

    def __init__(self, cfg: DictConfig, tree: Tree, overrides: list[str]) -> None:
        self.cfg, self.tree, self.overrides = cfg, tree, overrides
        self.folder, self.hardware = tree.folder, tree.hardware
        self.summary = Summary(self.folder)
        self.loggers: list[Any] = []

    def run(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.summary.start(**self.facts())
        code = ExitCode.FAILED
        try:
            code = self._train()
        finally:
            self._finish_wandb(code)
        return code

    def facts(self) -> dict[str, Any]:
        import hashlib

        started = self.summary.values.get("started") or ""
        identity = f"{self.cfg.name}/{self.folder.name}/{started or os.urandom(8).hex()}"
        return {
            "run_id": self.summary.values.get("run_id") or hashlib.sha256(identity.encode()).hexdigest()[:12],
            "name": self.cfg.name,
            "study": self.cfg.name if self.cfg.study is not None else None,
            "config_hash": config_hash(OmegaConf.to_container(self.cfg, resolve=True))[:8],  # type: ignore[arg-type]
            "overrides": self.overrides,
            "seed": self.cfg.seed,
            "machine": {
                "cpu": cpu_name(),
                "threads": threads(),
                "device": self.hardware.accelerator,
                "world_size": self.hardware.world_size,
            },
        }

    def _train(self) -> int:
        from kleiber.runs.stage import run_tree
        from kleiber.training.callbacks.fault_tolerance import Preempted
        from kleiber.training.step import Diverged

        try:
            self.loggers = self._make_loggers()
            self.tree.loggers = self.loggers
            keep_tokenizer(self.tree.stages[0].plan.corpus.tokenizer, self.folder)
            run_tree(self.tree, self._put)
            self.summary.update(status=Status.FINISHED)
            self._mirror()
        except Diverged as error:
            self.summary.update(status=Status.DIVERGED, error=str(error))
            print(f"diverged at {error}; the last good checkpoint is kept in {self.folder}", file=sys.stderr)
            return ExitCode.FAILED
        except Preempted as reason:
            self.summary.update(status=Status.PREEMPTED, error=str(reason))
            print(f"preempted by {reason}; the same command continues {self.folder}", file=sys.stderr)
            return ExitCode.PREEMPTED
        except KeyboardInterrupt:
            self.summary.update(status=Status.KILLED, error="interrupted (Ctrl-C)")
            print(f"interrupted; the same command continues {self.folder}", file=sys.stderr)
            return ExitCode.INTERRUPTED
        except ConfigError as error:  # which whoever started the run tells in a line
            self.summary.update(status=Status.FAILED, error=str(error))
            raise
        except Exception as error:
            self.summary.update(status=Status.FAILED, error=f"{type(error).__name__}: {error}")
            traceback.print_exc()
            return ExitCode.FAILED
        from kleiber.records.closing_table import closing_table

        closing_table(self.folder)
        return ExitCode.DONE

    def _make_loggers(self) -> list[Any]:
        from kleiber.config.signatures import build
        from kleiber.training.loggers import Rows

        values = self.summary.values
        available = {
            "folder": self.folder,
            "run_id": values["run_id"],
            "run_name": self.folder.name,
            "group": self.cfg.name,
            "run_config": OmegaConf.to_container(self.cfg, resolve=True),
        }
        chosen = [build(node, **available) for node in (self.cfg.logger or {}).values()]
        return [Rows(self.folder), *(logger for logger in chosen if logger is not None)]

    def _put(self, stage: dict[str, Any]) -> None:
        from kleiber.config.stages import ONLY
        from kleiber.records.summary import score_matrix
        from kleiber.training.loggers import prefixed

        self.summary.put_stage(stage)
        if stage["start_metrics"]:
            metrics = {t.name: (t.objective.metric, t.objective.higher_is_better) for t in self.tree.tasks}
            self.summary.update(R=score_matrix(metrics, self.summary.values["stages"]))
        name = None if stage["name"] == ONLY else stage["name"]
        for run in self._wandb_runs():
            run.summary.update({prefixed(name, key): value for key, value in stage["metrics"].items()})

    def _mirror(self) -> None:
        last = self.summary.values["stages"][-1]
        for run in self._wandb_runs():
            run.summary.update({"status": str(Status.FINISHED), "checkpoint": last["checkpoint"]})
            run.summary.update({f"params/{name}": count for name, count in last["params"].items()})

    def _wandb_runs(self) -> list[Any]:
        from lightning.pytorch.loggers import WandbLogger

        return [logger.experiment for logger in self.loggers if isinstance(logger, WandbLogger)]

    def _finish_wandb(self, code: int) -> None:
        for run in self._wandb_runs():
            run.finish(exit_code=code)


def keep_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Copies a tokenizer that was trained here into the run, where what starts from the run finds it."""
    import json
    import shutil

    from kleiber.data.tokenizers.byte_level import EOS, MASK
    from kleiber.data.tokenizers.pretrained import CONFIG, FILE
    from kleiber.records.folder import TOKENIZER

    if tokenizer.path is None:
        return
    (folder / TOKENIZER).mkdir(exist_ok=True)
    shutil.copy(tokenizer.path, folder / TOKENIZER / FILE)
    (folder / TOKENIZER / CONFIG).write_text(json.dumps({"eos_token": EOS, "mask_token": MASK}))


def threads() -> int:
    import torch

    return torch.get_num_threads()
