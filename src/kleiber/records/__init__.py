"""The files that a run leaves on disk, and reading them back. Imports no torch."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.records.arrays import read_array, write_array
    from kleiber.records.catalog import Run, read_runs
    from kleiber.records.files import LONGEST, load_json, read_json, write_json, write_text
    from kleiber.records.leftovers import format_bytes
    from kleiber.records.locks import wait_for_lock
    from kleiber.records.metrics import rows_with
    from kleiber.records.progress import Activity, activity
    from kleiber.records.regular_files import file_sha256, make_folder, open_to_append, read_bytes
    from kleiber.records.terminal import print_line

__all__, __getattr__ = lazy_exports(__name__, {}, __file__)
