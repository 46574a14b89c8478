"""Experimental designs: each lists the runs of a sweep, as overrides."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.studies.designs.design import (
        Cell,
        Level,
        RunSource,
        SweepContext,
        Values,
        combine,
        finished_base,
        from_checkpoint,
        parse_lines,
        seed_levels,
    )
    from kleiber.studies.designs.grid import LR, Arms, kept_arms

EXPORTS = {
    "Arms": "grid",
    "Cases": "grid",
    "Grid": "grid",
    "IsoFLOP": "isoflop",
    "Methods": "grid",
    "Search": "search",
    "Sequences": "sequences",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
