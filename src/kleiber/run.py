"""One run, from a composed config and a folder to a summary: plan, train, evaluate, write down, show.

However it ends, summary.json says how, and the W&B run is finished with the same verdict. It makes no ranks and chooses
no folder: the launcher does.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kleiber.identity import config_hash
from kleiber.summary import Summary

DONE, FAILED, INTERRUPTED = 0, 1, 130


def train(cfg: DictConfig, folder: Path, overrides: list[str] | None = None) -> int:
    """Runs `cfg` in `folder`; returns the exit code: 0 finished, 1 failed or diverged, 130 interrupted.

    Raises ValueError for what a user can mend (bad data, a setting that does not fit), before any training.
    """
    from kleiber.build import build
    from kleiber.plan import describe, make_plan

    hardware = build(cfg.trainer)
    hardware.prepare()
    if cfg.dry_run:
        plan = make_plan(cfg, hardware)
        if hardware.rank == 0:
            print(describe(plan))
        return DONE
    if hardware.rank != 0:
        from kleiber.stage import run_stage

        run_stage(cfg, make_plan(cfg, hardware), hardware, folder, loggers=[])
        return DONE
    return Chief(cfg, folder, hardware, overrides or []).run()


class Chief:
    """Rank 0 of a run: the only one that writes the summary, talks to W&B and prints."""

    def __init__(self, cfg: DictConfig, folder: Path, hardware: Any, overrides: list[str]) -> None:
        self.cfg, self.folder, self.hardware, self.overrides = cfg, folder, hardware, overrides
        self.summary = Summary(folder)
        self.loggers: list[Any] = []

    def run(self) -> int:
        from kleiber.plan import make_plan

        plan = make_plan(self.cfg, self.hardware)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.summary.start(**self.facts())
        code = FAILED
        try:
            code = self._train(plan)
        finally:
            self._finish_wandb(code)
        return code

    def facts(self) -> dict[str, Any]:
        import hashlib
        import platform

        started = self.summary.values.get("started") or ""
        identity = f"{self.cfg.name}/{self.folder.name}/{started or os.urandom(8).hex()}"
        return {
            "run_id": self.summary.values.get("run_id") or hashlib.sha256(identity.encode()).hexdigest()[:12],
            "name": self.cfg.name,
            "study": None,
            "config_hash": config_hash(OmegaConf.to_container(self.cfg, resolve=True))[:8],  # type: ignore[arg-type]
            "overrides": self.overrides,
            "seed": self.cfg.seed,
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "threads": threads(),
                "device": self.hardware.accelerator,
                "world_size": self.hardware.world_size,
            },
        }

    def _train(self, plan: Any) -> int:
        from kleiber.stage import run_stage
        from kleiber.step import Diverged

        try:
            self.loggers = self._make_loggers()
            stage = run_stage(self.cfg, plan, self.hardware, self.folder, self.loggers)
            self.summary.put_stage(stage)
            self.summary.update(status="finished")
            self._mirror(stage)
        except Diverged as error:
            self.summary.update(status="diverged", error=str(error))
            print(f"diverged at {error}; the last good checkpoint is kept in {self.folder}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            self.summary.update(status="killed", error="interrupted (Ctrl-C)")
            print(f"interrupted; the same command continues {self.folder}", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            self.summary.update(status="failed", error=f"{type(error).__name__}: {error}")
            traceback.print_exc()
            return FAILED
        from kleiber.report import closing_table

        closing_table(self.folder)
        return DONE

    def _make_loggers(self) -> list[Any]:
        from kleiber.build import build
        from kleiber.loggers import Rows

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

    def _mirror(self, stage: dict[str, Any]) -> None:
        for run in self._wandb_runs():
            run.summary.update({"status": "finished", **stage["metrics"], "checkpoint": stage["checkpoint"]})
            run.summary.update({f"params/{name}": count for name, count in stage["params"].items()})

    def _wandb_runs(self) -> list[Any]:
        from lightning.pytorch.loggers import WandbLogger

        return [logger.experiment for logger in self.loggers if isinstance(logger, WandbLogger)]

    def _finish_wandb(self, code: int) -> None:
        for run in self._wandb_runs():
            run.finish(exit_code=code)


def threads() -> int:
    import torch

    return torch.get_num_threads()
