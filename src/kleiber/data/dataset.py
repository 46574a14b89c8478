"""Finds a data set (a file, a folder, or a name on the hub) and reads its splits through `datasets`.

`datasets` is imported only when text is read. Prepared data comes from the cache without it.
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kleiber.config import hub
from kleiber.data.cache import SCRATCH, is_full_disk
from kleiber.data.input_files import choose_config, split_files
from kleiber.data.location import KINDS, Location, suffix
from kleiber.data.read_errors import (
    defect,
    explain,
    first_lines,
    missing_package,
    open_bytes,
    root_cause,
    unwanted_content,
)  # fmt: skip
from kleiber.records.locks import scratch_folder
from kleiber.records.progress import activity
from kleiber.types import Row

if TYPE_CHECKING:
    from datasets import Dataset

Split = TypeVar("Split")

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "validation_matched"),  # the last one is MNLI's
    "test": ("test",),
}
PIECE = 1 << 20  # characters of a text file that are in memory at once
REMEDY = (
    "set KLEIBER_DATA=DIR to a folder with a copy in DIR/owner/name or DIR/name, or data.path to a local file or "
    "folder, or data=builtin, which needs no network"
)


@contextmanager
def open_splits(location: Location, config: str | None, root: Path) -> Iterator[tuple[dict[str, Dataset], str]]:
    """Opens the splits train, validation and test of a data set, as far as it has them, and the config they belong to.

    root  folder for copies that `datasets` makes of local files; they are deleted on exit

    Raises ValueError naming the fault: a line of JSON, a config, a hub that cannot be reached, no training split.
    """
    with _opened(location, config, root) as (tables, config):
        yield standard_splits(tables, location.name), config


@contextmanager
def open_tables(location: Location, config: str | None, root: Path) -> Iterator[dict[str, Dataset]]:
    """Opens all splits of a data set by their own names; otherwise as `open_splits`."""
    with _opened(location, config, root) as (tables, _):
        yield tables


@contextmanager
def _opened(location: Location, config: str | None, root: Path) -> Iterator[tuple[dict[str, Dataset], str]]:
    import datasets
    from pyarrow import ArrowException

    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # an error that it logs is raised as well
    try:
        with scratch_folder(SCRATCH, root) as scratch:
            with activity(f"loading {location.name}"):
                tables, config = _load(location, config, None if location.local is None else str(scratch))
            try:
                yield tables, config
            except (UnicodeDecodeError, ArrowException) as error:  # strings are decoded when a row is read
                raise ValueError(_explain(location, config, error, online=True)) from error
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def read_text_file(location: Location) -> Iterator[str]:
    """Yields the text of a .txt file in pieces of a million characters, so memory does not depend on its lines.

    A byte order mark is dropped, and line breaks of every system become a line feed. Raises ValueError where the file
    is not text in UTF-8.
    """
    assert location.local is not None
    _check_content(location)
    return read_text(str(location.local))


def read_text(path: str) -> Iterator[str]:
    """Yields the text of a file or URL in pieces; otherwise as `read_text_file`."""
    try:
        with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig") as file:
            while piece := file.read(PIECE):
                yield piece
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(explain(path, error)) from error


def standard_splits(tables: dict[str, Split], name: str) -> dict[str, Split]:
    """Returns the tables or files of the splits train, validation and test. A single split of any name is train."""
    splits = {ours: tables[name] for ours, names in SPLIT_NAMES.items() for name in names if name in tables}
    if "train" not in splits:
        if len(tables) != 1:
            raise ValueError(f"data.path={name} must have a split `train`; its splits are {', '.join(tables)}")
        splits = {"train": next(iter(tables.values()))}
    unused = len(tables) - len(splits)
    if unused:
        log.info("%s: %d of the splits %s are not used", name, unused, ", ".join(tables))
    return splits


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


def _load(location: Location, config: str | None, scratch: str | None) -> tuple[dict[str, Dataset], str]:
    from datasets import load_dataset

    with named_errors(location, config):
        if location.kind == "text":  # the lines are one document, so joined they are the file
            files = {"train": str(location.local)}
            lines = load_dataset("text", data_files=files, cache_dir=scratch, sample_by="line", keep_linebreaks=True)
            return _by_name(lines), ""
        if location.kind or location.matches:
            files, _ = split_files(location, config)
            kind = KINDS[suffix(files["train"][0])]
            return _by_name(load_dataset(kind, data_files=files, cache_dir=scratch)), ""
        if location.local is not None and _only_text(location):
            return _by_name(load_dataset(str(location.local), cache_dir=scratch, sample_by="document")), ""
        config = choose_config(location, config)
        path = location.name if location.local is None else str(location.local)
        return _by_name(load_dataset(path, config, cache_dir=scratch)), config or ""


@contextmanager
def named_errors(location: Location, config: str | None) -> Iterator[None]:
    """Checks the files of a data set, and raises errors within the context as ValueError that names what is wrong.

    Within it, Hugging Face libraries do not use the network for data on this machine.
    """
    _check_one_kind(location)
    _check_parquet(location)
    _check_links(location)
    _check_content(location)
    needs_hub = location.on_hub or location.name.startswith("hf://")
    online = not needs_hub or hub.reachable()
    with hub.offline() if not needs_hub or not online else nullcontext():
        try:
            yield
        except Exception as error:  # `datasets` raises many kinds, down to a bare StopIteration
            cause = root_cause(error)
            if is_full_disk(cause):
                raise cause from None
            raise ValueError(_explain(location, config, cause, online)) from error


def _by_name(splits: object) -> dict[str, Dataset]:
    assert isinstance(splits, Mapping)
    return {str(name): split for name, split in splits.items()}


def _only_text(location: Location) -> bool:
    suffixes = {suffix for path in location.files() for suffix in path.suffixes}
    return ".txt" in suffixes and not suffixes & (set(KINDS) - {".txt"})


def _check_one_kind(location: Location) -> None:
    """Raises ValueError for files of several kinds, of which `datasets` reads only the most frequent.

    A folder with a README describes itself. JSON files may hold metadata, so they do not count.
    """
    if location.local is not None and (not location.local.is_dir() or (location.local / "README.md").is_file()):
        return
    paths = sorted(location.local.iterdir()) if location.local else [Path(match.path) for match in location.matches]
    suffixes = [suffix(str(path)) for path in paths if suffix(str(path)) in set(KINDS) - {".json"}]
    counts = {suffix: suffixes.count(suffix) for suffix in dict.fromkeys(suffixes)}
    if len({KINDS[suffix] for suffix in counts}) > 1:
        listed = " and ".join(f"{count} {suffix}" for suffix, count in counts.items())
        raise ValueError(
            f"data.path={location.name} has {listed} files, and only one kind can be read: make a folder of each kind"
        )


def _check_parquet(location: Location) -> None:
    """Raises ValueError for a file of Parquet in gzip or zstd, within which rows cannot be found."""
    for path in location.paths():
        name = Path(path).name
        if suffix(name) == ".parquet" and not name.lower().endswith(".parquet"):
            raise ValueError(
                f"data.path={location.name} has {name}, but compressed files of Parquet are not read: decompress it"
            )


def _check_links(location: Location) -> None:
    """Raises ValueError for files in a folder that is a link, which `datasets` leaves out.

    A folder with a README describes itself.
    """
    if location.local is None or (location.local / "README.md").is_file():
        return
    paths = [path.relative_to(location.local) for path in location.files() if suffix(str(path)) in KINDS]
    for folder in sorted({folder for path in paths for folder in path.parents}):
        if folder.parts and (location.local / folder).is_symlink():
            pattern = f"{location.name.rstrip('/')}/*{'/*' * len(folder.parts)}"
            raise ValueError(
                f"data.path={location.name} has the folder {folder}, which is a link, and such folders are read only "
                f"by patterns: set data.path to a pattern such as {pattern}, or copy the folder"
            )


def _check_content(location: Location) -> None:
    """Raises ValueError for a file that `datasets` would read as something else than its author meant."""
    for path in location.files():
        reason = unwanted_content(path)
        if reason is not None:
            raise ValueError(f"data.path={location.name} cannot be read: {reason}")


def _explain(location: Location, config: str | None, cause: BaseException, online: bool) -> str:
    if location.on_hub and not online:
        return f"data.path={location.name} is no file or folder here, and the hub is not reachable; {REMEDY}"
    reasons = (*map(defect, location.files()), *(missing_package(path, cause) for path in location.paths()))
    reason = next(filter(None, reasons), None) or first_lines(cause)
    keys = f"data.path={location.name}" + (f" data.config={config}" if config else "")
    return f"{keys} cannot be read: {reason}"
