"""Callbacks: what happens beside the optimizer steps of a stage, one concern each."""

from kleiber.types.exports import lazy_exports

EXPORTS = {
    "Classes": "after_training",
    "Latency": "after_training",
    "Positions": "after_training",
    "Checkpoints": "checkpoints",
    "EMA": "ema",
    "Log": "log",
    "Progress": "log",
    "Samples": "log",
    "RoutingHealth": "routing",
    "Stability": "stability",
    "Throughput": "throughput",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
