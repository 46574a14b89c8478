"""Designs: which runs a sweep consists of, and what they will determine."""

from kleiber.types.exports import lazy_exports

EXPORTS = {
    "Arms": "arms",
    "Cases": "grid",
    "Grid": "grid",
    "IsoFLOP": "isoflop",
    "Optimal": "optimal",
    "Methods": "paired",
    "Pretraining": "pretraining",
    "Sequences": "sequences",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
