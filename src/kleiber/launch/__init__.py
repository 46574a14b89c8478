"""Processes: the commands, sweeps, ranks, local pools and job schedulers."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Basic": "local_pool",
    "Process": "local_pool",
    "CoreClock": "run_cost",
    "Ray": "schedulers",
    "Submitit": "schedulers",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
