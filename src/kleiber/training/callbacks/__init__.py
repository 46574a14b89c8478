"""Callbacks: what a stage does besides its optimizer steps, such as evaluating, logging and saving checkpoints."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Classes": "classes",
    "Samples": "samples",
    "EMA": "ema",
    "Checkpoints": "fault_tolerance",
    "Stability": "stability",
    "Log": "log",
    "Progress": "progress",
    "RewardAlarm": "reward_alarm",
    "RoutingHealth": "log",
    "Throughput": "log",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
