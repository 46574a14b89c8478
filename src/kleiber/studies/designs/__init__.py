"""Designs: which runs a sweep consists of, and what they will determine."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Arms": "grid",
    "Cases": "grid",
    "Grid": "grid",
    "IsoFLOP": "isoflop",
    "Optimal": "optimal",
    "Methods": "methods",
    "Pretraining": "pretraining",
    "Sequences": "sequences",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
