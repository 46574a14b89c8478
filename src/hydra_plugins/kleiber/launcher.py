"""hydra/launcher=kleiber: composes the cells of a sweep and hands them to the task function, a
`kleiber.sweep.Sweep`.

How cells are run is chosen by the ordinary group `launcher`, so that `launcher=basic` works like any other choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LauncherConf:
    _target_: str = "hydra_plugins.kleiber.launcher.KleiberLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="kleiber", node=LauncherConf, provider="kleiber")


class KleiberLauncher(Launcher):
    """Runs every cell, whatever becomes of the others; a cell's return value is its exit code."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.sweep, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sweep: Any = self.sweep
        composed = [self._compose(sweep.prepare(list(overrides))) for overrides in job_overrides]
        codes = sweep.run([(cfg, list(overrides)) for cfg, overrides in zip(composed, job_overrides, strict=True)])
        return [
            JobReturn(overrides=overrides, cfg=cfg, status=JobStatus.COMPLETED, _return_value=code)
            for cfg, overrides, code in zip(composed, job_overrides, codes, strict=True)
        ]

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, overrides)
