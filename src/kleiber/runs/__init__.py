"""One run: its plan, its tree of stages, where it starts from, training it, and opening it again."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Chain": "stage_tree",
    "TrunkAndCooldowns": "stage_tree",
    "Checkpoint": "start_point",
    "HF": "start_point",
    "Scratch": "start_point",
    "Upcycle": "start_point",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
