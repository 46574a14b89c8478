"""Processes: the commands, sweeps, ranks, local pools and job schedulers."""

from kleiber.types.exports import lazy_exports

EXPORTS = {
    "Ray": "ray_tasks",
    "Submitit": "slurm",
    "CoreClock": "speed",
    "Basic": "sweep",
    "Process": "sweep",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
