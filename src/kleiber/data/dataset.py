"""Finds a data set (a file, a folder, or a name on the hub) and reads its splits through `datasets`.

`datasets` is imported only when text is read. Prepared data comes from the cache without it.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config import hub
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.data.cache import SCRATCH, is_full_disk
from kleiber.data.folders import TABLES, suffix
from kleiber.data.input_files import choose_config, list_files
from kleiber.data.listing import WITHOUT, Group, Listing, only_tables, require_equal_columns, table_groups, with_splits
from kleiber.data.location import Location
from kleiber.data.read_errors import (
    DAMAGED,
    defect,
    explain,
    first_lines,
    is_url,
    missing_package,
    open_bytes,
    root_cause,
)
from kleiber.records.locks import scratch_folder
from kleiber.records.progress import activity
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from datasets import Dataset

Check = Callable[["Dataset", str], None]

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "validation_matched"),  # the last one is MNLI's
    "test": ("test",),
}
PIECE = 1 << 20  # characters of a text file that are in memory at once
REMEDY = (
    "Set KLEIBER_DATA=DIR to a folder with a copy in DIR/owner/name or DIR/name, or data.path to a local file or "
    "folder, or data=builtin, which needs no network"
)


@contextmanager
def open_splits(
    location: Location, config: str | None, root: Path, check: Check | None = None
) -> Iterator[tuple[dict[str, Dataset], Json]]:
    """Opens the splits train, validation and test of a data set, as far as it has them, and notes for the manifest.

    root   folder for copies that `datasets` makes of local files; they are deleted on exit
    check  raises ValueError for a table without the columns that are needed; tables of a kind that has none of them
           are left out, if there are others

    Raises ValueError naming the fault: a line of JSON, a config, a hub that cannot be reached, no training split.
    """
    with open_tables(location, config, root, check) as (tables, notes):
        names = standard_names(tables, location.name)
        yield {split: tables[theirs] for split, theirs in names.items()}, use_splits(notes, names)


@contextmanager
def open_tables(
    location: Location, config: str | None, root: Path, check: Check | None = None
) -> Iterator[tuple[dict[str, Dataset], Json]]:
    """Opens all splits of a data set by their own names; otherwise as `open_splits`."""
    location = location.in_reach
    with named_errors(location, config):
        listing = only_tables(list_files(location, config))
    with loading(location, config, root) as scratch:
        if location.on_hub or location.has_card:  # which may declare types of columns too
            with activity(f"loading {location.name}"):
                tables = load_declared(location, config, scratch)
        else:
            require_equal_columns(listing, location.name)
            groups = table_groups(listing)
            loaded, unfit = _load_with_columns(location, groups, scratch, check)
            listing = listing.without((name for group in unfit for name in group.names), f"{WITHOUT}the columns")
            with named_errors(location, None):
                tables = _join(loaded)
        yield tables, notes_of(location, listing)


def notes_of(location: Location, listing: Listing) -> Json:
    """Returns what the manifest records of a listing; on the hub, the sizes of files are not known."""
    return {"config": listing.config, **({} if location.on_hub else {"read": listing.to_json()})}


def use_splits(notes: Json, names: Mapping[str, str]) -> Json:
    """Returns the notes on the splits that are used; `names` has the data set's own name of each."""
    return {**notes, "read": with_splits(notes["read"], names)} if "read" in notes else notes


@contextmanager
def loading(location: Location, config: str | None, root: Path) -> Iterator[Path]:
    """Makes `datasets` silent, yields a folder for its copies, and names what is wrong with strings that it decodes."""
    import datasets
    from pyarrow import ArrowException

    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # an error that it logs is raised as well
    try:
        with scratch_folder(SCRATCH, root) as scratch:
            try:
                yield scratch
            except (UnicodeDecodeError, ArrowException) as error:  # strings are decoded when a row is read
                raise ValueError(_explain(location, config, error, online=True)) from error
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def load_declared(location: Location, config: str | None, scratch: Path) -> dict[str, Dataset]:
    """Returns the tables of a data set on the hub, or of a folder with a card, by split."""
    from datasets import load_dataset

    path = location.name if location.local is None else str(location.local)
    with named_errors(location, config):
        folder = None if location.local is None else str(scratch)
        return _by_name(load_dataset(path, choose_config(location, config), cache_dir=folder))


def load_groups(location: Location, groups: Sequence[Group], scratch: Path) -> list[dict[str, Dataset]]:
    """Returns the tables of each group of files, by split."""
    from datasets import load_dataset

    with named_errors(location, None), activity(f"loading {location.name}"):
        return [
            _by_name(load_dataset(g.builder, data_files=dict(g.files), cache_dir=str(scratch), **g.options))
            for g in groups
        ]


def _load_with_columns(
    location: Location, groups: Sequence[Group], scratch: Path, check: Check | None
) -> tuple[list[dict[str, Dataset]], list[Group]]:
    """Returns the tables of the groups that `check` accepts, and the other groups; JSON may be no table at all.

    Raises the ValueError of the first group, or the first that is no JSON, if there is none that `check` accepts.
    """
    loaded: list[dict[str, Dataset]] = []
    errors: list[tuple[bool, Group, ValueError]] = []
    for group in groups:
        is_json = all(suffix(name) == ".json" for name in group.names)
        try:
            (tables,) = load_groups(location, [group], scratch)
        except ValueError as error:
            if len(groups) == 1 or not is_json:
                raise
            errors.append((is_json, group, error))
            continue
        try:
            if check is not None and len(groups) > 1:
                for table in tables.values():
                    check(table, location.name)
            loaded.append(tables)
        except ValueError as error:
            errors.append((is_json, group, error))
    if not loaded:
        raise min(errors, key=lambda error: error[0])[2]
    return loaded, [group for _, group, _ in errors]


def _join(groups: Sequence[Mapping[str, Dataset]]) -> dict[str, Dataset]:
    """Returns the rows of all groups by split; a column that a group lacks is empty in its rows."""
    from datasets import Features, concatenate_datasets

    if len(groups) == 1:
        return dict(groups[0])
    features: dict[str, object] = {}
    joined: dict[str, list[Dataset]] = {}
    for tables in groups:
        for name, table in tables.items():
            features = {**table.features, **features}  # builders have types of their own for equal values
            alike = Features({column: features[column] for column in table.column_names})
            joined.setdefault(name, []).append(table.cast(alike))
    return {name: concatenate_datasets(tables) for name, tables in joined.items()}


def read_text(path: str) -> Iterator[str]:
    """Yields the text of a file or URL in pieces of a million characters, so memory does not depend on its lines.

    A byte order mark is dropped, and line breaks of every system become a line feed. Raises ValueError where the file
    is not text in UTF-8.
    """
    try:
        with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as file:
            while piece := file.read(PIECE):
                yield piece
    except (*DAMAGED, UnicodeDecodeError) as error:
        raise ValueError(explain(path, error)) from error


def standard_names(names: Iterable[str], data_set: str) -> dict[str, str]:
    """Returns the data set's own name of each of the splits train, validation and test that it has.

    A single split of any name is train. Raises ValueError where there is no training split.
    """
    present = [*names]
    chosen = {ours: name for ours, names_of_split in SPLIT_NAMES.items() for name in names_of_split if name in present}
    if "train" not in chosen:
        if len(present) != 1:
            raise ValueError(f"data.path={data_set} must have a split `train`; its splits are {', '.join(present)}")
        chosen = {"train": present[0]}
    unused = len(present) - len(chosen)
    if unused:
        log.info("%s: %d of the splits %s are not used", data_set, unused, ", ".join(present))
    return chosen


def require_columns(table: Dataset, columns: Iterable[str], name: str, key: str | None = None) -> None:
    """Raises ValueError for the first column that the table of data set `name` lacks; `key` is the setting for it."""
    for column in columns:
        if column not in table.column_names:
            present = ", ".join(table.column_names)
            if key is not None:
                raise ValueError(f"{key}={column}: data.path={name} has no such column; set {key} to one of {present}")
            raise ValueError(f"data.path={name} must have a column {column}; its columns are {present}")


def require_text_columns(table: Dataset, columns: Sequence[str], name: str) -> None:
    """Raises ValueError for the first column of data.text that is missing or does not contain text."""
    from datasets import Value

    require_columns(table, columns, name, "data.text")
    for column in columns:
        feature = table.features[column]
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise ValueError(f"data.text={column} must be a column of text: in {name} it contains {kind}")


def rows(table: Dataset) -> Iterator[Row]:
    """Yields the rows of a table as dictionaries, with values by column."""
    return (row for batch in row_batches(table) for row in batch)


def row_batches(table: Dataset, size: int = 1000) -> Iterator[list[Row]]:
    """Yields the rows of a table in lists of at most `size`."""
    with activity("reading rows", len(table), "rows") as work:
        for batch in table.iter(batch_size=size):
            assert isinstance(batch, dict)
            yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            work.done += len(next(iter(batch.values())))


def table_name(location: Location, config: str | None) -> str:
    """Returns a short name for metrics: the last part of the path, and the config where one is set."""
    name = location.stem if config is None else f"{location.stem}-{config}"
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-") or "table"


@contextmanager
def named_errors(location: Location, config: str | None) -> Iterator[None]:
    """Raises errors within the context as ValueError that names what is wrong with the data set.

    Within it, Hugging Face libraries do not use the network for data on this machine.
    """
    needs_hub = location.on_hub or location.name.startswith("hf://")
    online = not needs_hub or hub.reachable()
    with hub.offline() if not needs_hub or not online else nullcontext():
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # `datasets` raises many kinds, down to a bare StopIteration
            cause = root_cause(error)
            if is_full_disk(cause):
                raise cause from None
            raise ValueError(_explain(location, config, cause, online)) from error


def _by_name(splits: object) -> dict[str, Dataset]:
    assert isinstance(splits, Mapping)
    return {str(name): split for name, split in splits.items()}


def _explain(location: Location, config: str | None, cause: BaseException, online: bool) -> str:
    if location.on_hub and not online:
        owner, _, rest = location.name.partition("/")
        if rest and hub.local_copy(owner) is not None:
            return (
                f"data.path={location.name} is no file or folder here, and the hub is not reachable; KLEIBER_DATA has "
                f"{owner}, without a folder {rest}: {rest} may be one of its configs "
                f"(data.path={owner} data.config={rest})"
            )
        folder = Path(location.name).parent
        near = did_you_mean(location.name, map(str, folder.iterdir()) if folder.is_dir() else ())
        return f"data.path={location.name} is no file or folder here, and the hub is not reachable.{near} {REMEDY}"
    if location.on_hub:
        from kleiber.config.hub_failures import failure

        if (why := failure(cause, location.name, "data set")) is not None:
            return f"data.path={location.name} cannot be read: {why}"
    keys = f"data.path={location.name}" + (f" data.config={config}" if config else "")
    if isinstance(cause, FileNotFoundError) and location.is_snapshot:
        absent = re.findall(r"'([^']+)'", str(cause))[:1] or ["a file"]
        return (
            f"{keys} cannot be read: the hub is not reachable, and {Path(absent[0]).name} was not downloaded before; "
            "repeat the command when the hub answers"
        )
    paths = [file.path for file in location.files if location.is_file or suffix(file.path) in (".txt", *TABLES)]
    local = [Path(path) for path in paths if not is_url(path)]
    reasons = (*map(defect, local), *(missing_package(path, cause) for path in paths))
    reason = next(filter(None, reasons), None) or first_lines(cause)
    return f"{keys} cannot be read: {reason}"
