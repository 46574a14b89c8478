"""`launcher=ray`: one Ray task per cell, on a cluster that is there or on this machine.

The task starts fresh processes as `launcher=process` would, so nothing of the run lives in a Ray worker; Ray chooses
the machine and the GPUs, and starts a task again whose worker has died, which then resumes. The folder of runs has to
lie where all machines see it. It refuses a machine without Ray.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleiber.config.errors import ConfigError
from kleiber.launch.cell import Cell
from kleiber.launch.scheduler import Task, Watch, task


@dataclass(frozen=True)
class Ray:
    """One Ray task per cell.

    address        of a cluster that is there, or auto for the one on this machine; None starts one here for the sweep
    cpus_per_task  cores of a cell; None means one per device, or `trainer.threads` of them
    """

    address: str | None = None
    cpus_per_task: int | None = None

    def __post_init__(self) -> None:
        if self.cpus_per_task is not None and self.cpus_per_task < 1:
            raise ConfigError(f"launcher.cpus_per_task={self.cpus_per_task}: write a number from 1")

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError("launcher=ray needs a package: pip install 'kleiber[ray]'") from None
        try:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"launcher.address={self.address}: no Ray cluster answers there ({error})") from error
        try:
            return Watch(cells, Remote(ray, cells, self.cpus_per_task)).run()
        finally:
            ray.shutdown()


class Remote:
    """Ray's tasks of one sweep."""

    def __init__(self, ray: Any, cells: Sequence[Cell], cpus: int | None) -> None:
        self.ray = ray
        self.tasks = {self._submit(one, cpus): one.folder for one in cells}

    def _submit(self, one: Cell, cpus: int | None) -> Any:
        needs = {"num_cpus": cpus or one.devices * (one.threads or 1)}
        if one.accelerator == "gpu":
            needs["num_gpus"] = one.devices
        return self.ray.remote(cell_of_ray).options(name=one.folder.name, **needs).remote(task(one, cpus))

    def there(self) -> set[Path]:
        _, unfinished = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0, fetch_local=False)
        return {self.tasks[one] for one in unfinished}

    def cancel(self) -> None:
        for one in self.tasks:
            self.ray.cancel(one, force=False, recursive=False)


def cell_of_ray(run: Task) -> int:
    """Ray cancels by an interrupt, which is Ctrl-C to a run; here it becomes the signal that makes a run save."""
    before = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        return run()
    finally:
        signal.signal(signal.SIGINT, before)
