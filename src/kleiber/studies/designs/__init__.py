"""Experimental designs: each lists the runs of a sweep, as overrides."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Arms": "grid",
    "Cases": "grid",
    "Generations": "generations",
    "Grid": "grid",
    "IsoFLOP": "isoflop",
    "Methods": "grid",
    "Pretraining": "pretraining",
    "Search": "search",
    "Sequences": "sequences",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
