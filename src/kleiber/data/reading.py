"""What was read of the files of a data set, in sentences for the banner of a run, a dry run and `kleiber data`."""

from __future__ import annotations

from collections.abc import Iterable

from kleiber.data.listing import WITHOUT, describe_files
from kleiber.data.location import Location
from kleiber.data.overlap import describe_overlap, overlap_warning
from kleiber.data.sources import Reading
from kleiber.types import Json


def read_from(name: str, location: Location, manifest: Json, count: int | None, unit: str) -> Reading:
    """Returns what was read of a data set.

    manifest  of its prepared text or rows, with the notes `read` and `overlap` where they were made
    count     of its documents or rows; None where they were not counted
    unit      "document" or "row"
    """
    noted, shared = manifest.get("read"), manifest.get("overlap")
    warnings = [left_out_warning(noted)] if noted else []
    warnings += [overlap_warning(shared, unit)] if shared else []
    return Reading(
        files=(f"{name}: {describe_files(location, noted, count, unit)}",) if noted else (),
        overlap=(f"{name}: {describe_overlap(shared, unit)}",) if shared else (),
        warnings=tuple(f"{name}: {warning}" for warning in warnings if warning is not None),
    )


def left_out_warning(noted: Json) -> str | None:
    """Returns a warning where tables are left out because they have other columns; None where there are none."""
    names = [entry["name"] for entry in noted["left_out"] if entry["reason"].startswith(WITHOUT)]
    if not names:
        return None
    some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return (
        f"tables without the columns that are read are left out ({some}): to read them too, rename their columns, or "
        "set data.text or data.label to names that all tables have"
    )


def join_readings(readings: Iterable[Reading]) -> Reading:
    """Returns what was read of several data sets."""
    listed = [*readings]
    return Reading(
        tuple(line for reading in listed for line in reading.files),
        tuple(line for reading in listed for line in reading.overlap),
        tuple(line for reading in listed for line in reading.warnings),
    )
