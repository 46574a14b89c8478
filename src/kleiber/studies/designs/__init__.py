"""Experimental designs: each lists the runs of a sweep, as overrides."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.studies.designs.design import (
        Cell,
        Level,
        RunSource,
        Values,
        combine,
        finished_base,
        from_checkpoint,
        parse_lines,
    )
    from kleiber.studies.designs.grid import kept_arms

EXPORTS = {
    "Arms": "grid",
    "Cases": "grid",
    "Grid": "grid",
    "IsoFLOP": "isoflop",
    "Methods": "grid",
    "Pretraining": "pretraining",
    "Schedules": "schedules",
    "Search": "search",
    "Sequences": "sequences",
    "Simplex": "simplex",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
