"""hydra/launcher=kleiber: hands the cells of a sweep to the task function, a `kleiber.launch.sweep.Sweep`.

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
    """Every cell is run, whatever becomes of the others; its return value is its exit code."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        self.sweep: Any = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        codes = self.sweep.run([list(overrides) for overrides in job_overrides], self.compose)
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=code)
            for overrides, code in zip(job_overrides, codes, strict=True)
        ]

    def compose(self, overrides: list[str]) -> DictConfig:
        """The config of one cell, `hydra` included."""
        return self.context.config_loader.load_sweep_config(self.config, overrides)
