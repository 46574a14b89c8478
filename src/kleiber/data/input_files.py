"""Which files of a data set are read, and in which split: one listing for text, tables, streams and descriptions.

A data set on the hub, and a folder with a dataset card, have the splits that they declare. So has a folder with the
hub's names of shards. Of every other folder, and of a pattern or URL, all files are read: tables, whose rows have a
column of text, and files of text in UTF-8 with any ending, each of which is a document. They are one split, unless
`data.splits=files` takes splits from their names. What is not read is listed with the reason.

Rows of JSON lines and Parquet, and texts, are read where they are. CSV and JSON become tables of `datasets` first
(`dataset`), which also reads what a card or the hub declares in other forms.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.data.contents import read_contents
from kleiber.data.folders import File, LeftOut, describe_left_out, list_names
from kleiber.data.layout import named_splits, shard_splits, split_of_name
from kleiber.data.location import TABLES, Location, is_table, suffix
from kleiber.data.read_errors import is_url, unwanted_content
from kleiber.types import Json

ROWS = (".jsonl", ".parquet")  # tables whose rows are read without a copy
NO_SPLIT, NO_TABLE, WITHOUT = "in no split", "no table", "without "  # reasons; the last one is followed by columns
OPTIONS: dict[str, Json] = {".tsv": {"sep": "\t"}, ".txt": {"sample_by": "document"}}  # of builders, by suffix
SHOWN = 8  # names of files of each split


@dataclass(frozen=True)
class Listing:
    """The files of a data set that are read, by its own names of splits.

    files     of each split, in the order of their names
    texts     names of the files that are texts; all others are tables
    left_out  the files that are not read, without those that are never read of a folder (`Location.left_out`)
    config    of the data set; empty for files without a card
    columns   of the tables, by the name of the file; empty where they have not been looked at
    named     whether names of files decide about the splits
    declared  whether only `datasets` can read the files, as the card or the hub declares them
    """

    files: Mapping[str, list[File]]
    texts: frozenset[str] = frozenset()
    left_out: tuple[LeftOut, ...] = ()
    config: str = ""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    named: bool = False
    declared: bool = False

    def all_files(self) -> Iterator[tuple[str, File]]:
        """Yields every file with its split."""
        return ((split, file) for split, files in self.files.items() for file in files)

    def paths(self, split: str, texts: bool, rows: bool) -> list[str]:
        """Returns the paths of the texts of a split, or of its tables that are read without a copy, or of others."""
        return [
            file.path
            for file in self.files[split]
            if (file.name in self.texts) == texts and (texts or (suffix(file.path) in ROWS) == rows)
        ]

    def without(self, names: Iterable[str], reason: str) -> Listing:
        """Returns the listing without the files of these names, which are left out for this reason."""
        dropped = {*names}
        files = {split: [file for file in files if file.name not in dropped] for split, files in self.files.items()}
        left_out = [LeftOut(file.name, reason, file.size) for _, file in self.all_files() if file.name in dropped]
        present = {split: files for split, files in files.items() if files}
        return replace(self, files=present, left_out=(*self.left_out, *left_out))

    def to_json(self) -> Json:
        """Returns what the manifest of prepared data records."""
        files = [file for _, file in self.all_files()]
        texts = sum(file.name in self.texts for file in files)
        return {
            "splits": {
                split: {
                    "files": len(files),
                    "bytes": sum(file.size for file in files),
                    "names": [file.name for file in files] if self.named else [],
                }
                for split, files in self.files.items()
            },
            "texts": texts,
            "tables": len(files) - texts,
            "left_out": [asdict(entry) for entry in self.left_out],
        }  # fmt: skip


def describe_files(location: Location, noted: Json, counted: int | None = None, unit: str = "document") -> str:
    """Returns which files were read and which were left out, in a line.

    noted    what `Listing.to_json` returned when the data were prepared
    counted  documents or rows in all splits; None where they were not counted
    """
    splits = noted["splits"]
    count, size = (sum(split[key] for split in splits.values()) for key in ("files", "bytes"))
    kinds = [
        f"{noted[kind]:,} {kind if noted[kind] != 1 else kind[:-1]}" for kind in ("texts", "tables") if noted[kind]
    ]
    units = "" if counted is None else f", {counted:,} {unit}{'s' * (counted != 1)}"
    line = f"{count:,} file{'s' * (count != 1)}, {size:,} bytes{units} ({', '.join(kinds)})"
    for split, of_split in splits.items():
        if of_split["names"]:
            line += f"; {split}: {list_names(of_split['names'], SHOWN)}"
    left_out = [*(LeftOut(**entry) for entry in noted["left_out"]), *location.left_out]
    return f"{line}; left out: {describe_left_out(left_out)}" if left_out else line


def list_files(location: Location, config: str | None, download: bool = True) -> Listing:
    """Returns the files of a data set.

    download  whether files on the hub are downloaded; else they are URLs

    Raises ValueError for a table that is damaged, for a config of files that have none, and where nothing can be read,
    and the errors of `datasets`.
    """
    _refuse_compressed_parquet(location)
    if location.on_hub or location.has_card:
        return _declared_files(location, config, download)
    if config is not None:
        raise ConfigError(
            f"data.config={config}: data.path={location.name} has no configs, as only data sets on the hub and folders "
            "with a dataset card have: remove data.config"
        )
    if location.is_file:
        (file,) = location.files
        check_content([file], location)
        return Listing({"train": [file]}, frozenset() if is_table(file.path) else frozenset([file.name]))
    return _all_files(location)


def _all_files(location: Location) -> Listing:
    """Returns the listing of a folder without a card, a pattern or a URL."""
    contents = read_contents(location)
    for content in contents.values():
        if content.defect:
            raise ConfigError(f"data.path={location.name} {content.defect.removeprefix('data.path ')}")
    readable = [file for file in location.files if not contents[file.name].reason]
    splits, named = _splits_of(location, [file.name for file in readable])
    reasons = {name: content.reason or NO_SPLIT for name, content in contents.items() if name not in splits}
    files: dict[str, list[File]] = {}
    for file in location.files:
        if file.name in splits:
            files.setdefault(splits[file.name], []).append(file)
    columns = {name: contents[name].columns for name in splits if is_table(name) and contents[name].columns}
    left_out = [LeftOut(file.name, reasons[file.name], file.size) for file in location.files if file.name in reasons]
    listing = Listing(files, frozenset(splits.keys() - columns.keys()), tuple(left_out), columns=columns, named=named)
    if location.from_local_copy and columns:  # a text next to the tables of a data set of the hub describes them
        listing = listing.without(listing.texts, NO_TABLE)
    if not listing.files:
        left = describe_left_out([*listing.left_out, *location.left_out])
        raise ConfigError(f"data.path={location.name} must contain text or tables; left out are {left}")
    check_content((file for _, file in listing.all_files() if file.name in columns), location)
    return listing


def _splits_of(location: Location, names: list[str]) -> tuple[dict[str, str], bool]:
    """Returns the splits of files, and whether their names decide about them. Raises ValueError for names that do not.

    A local copy of a data set on the hub has the splits of its names, as it would have on the hub.
    """
    if location.by_name:
        splits = named_splits(names)
        if names and not any(map(split_of_name, names)):
            raise ConfigError(
                f"data.splits=files: data.path={location.name} has no file or folder that is named after a split, such "
                "as train, validation or test: rename them, or remove data.splits"
            )
        if names and "train" not in splits.values():
            raise ConfigError(
                f"data.splits=files: data.path={location.name} has files of {' and '.join(sorted({*splits.values()}))} "
                "only: add training files, or remove data.splits"
            )
        return splits, True
    shards = shard_splits(names)
    if shards is not None:
        return shards, True
    return (named_splits(names), True) if location.from_local_copy else (dict.fromkeys(names, "train"), False)


def with_columns(listing: Listing, columns: tuple[str, ...], name: str) -> Listing:
    """Returns the listing without the kinds of tables that lack the columns of text; JSON without them is a text.

    name  of the data set

    Raises ValueError for a table without the columns where others of its kind have them, and where no table is left and
    there are no texts or the columns were chosen.
    """
    without = [file for file, present in listing.columns.items() if not {*columns} <= {*present}]
    json = frozenset(file for file in without if suffix(file) == ".json")
    kinds = {suffix(file) for file in listing.columns if file not in without}
    for file in without:
        if suffix(file) in kinds and file not in json:
            absent = next(column for column in columns if column not in listing.columns[file])
            raise ConfigError(
                f"data.text={absent}: {file} in data.path={name} has no such column, unlike other {suffix(file)} files: "
                "give the column this name in all of them, or move the file elsewhere; its columns are "
                f"{', '.join(listing.columns[file])}"
            )
    chosen = replace(listing, texts=listing.texts | json)
    chosen = chosen.without((file for file in without if file not in json), f"{WITHOUT}{' and '.join(columns)}")
    if all(file.name in chosen.texts for _, file in chosen.all_files()) and (columns != ("text",) or not chosen.files):
        present = dict.fromkeys(column for file in without for column in listing.columns[file]) or {"text": None}
        absent = next(column for column in columns if column not in present)
        raise ConfigError(
            f"data.text={absent}: data.path={name} has no such column; set data.text to one of {', '.join(present)}"
        )
    return replace(chosen, columns={file: listing.columns[file] for file in listing.columns if file not in without})


def only_tables(listing: Listing) -> Listing:
    """Returns the listing without its texts, unless it has nothing else."""
    has_tables = any(file.name not in listing.texts for _, file in listing.all_files())
    return listing.without(listing.texts, NO_TABLE) if has_tables and listing.texts else listing


def require_equal_columns(listing: Listing, name: str) -> None:
    """Raises ValueError for tables of one kind with different columns; objects of JSON may lack keys of others.

    name  of the data set
    """
    first: dict[str, str] = {}
    for file, columns in listing.columns.items():
        other = first.setdefault(suffix(file), file)
        if TABLES[suffix(file)] != "json" and {*columns} != {*listing.columns[other]}:
            raise ConfigError(
                f"data.path={name} has {other} with the columns {', '.join(listing.columns[other])}, and {file} with "
                f"{', '.join(columns)}: give them the same columns, or move one of them elsewhere"
            )


@dataclass(frozen=True)
class Group:
    """Files that a builder of `datasets` reads together, by split."""

    builder: str
    options: Json
    files: Mapping[str, list[str]]
    names: tuple[str, ...]


def table_groups(listing: Listing, rows: bool = True) -> list[Group]:
    """Returns the tables of a listing in groups of one kind, and its texts as tables of one column.

    rows  whether tables are among them that can be read without a copy; if not, those of a group have equal columns,
          and texts are none of them
    """
    members: dict[tuple[str, tuple[str, ...]], list[tuple[str, File]]] = {}
    for split, file in listing.all_files():
        kind = ".txt" if file.name in listing.texts else suffix(file.path)
        if rows or (kind not in ROWS and kind != ".txt"):
            key = kind, () if rows else listing.columns.get(file.name, ())
            members.setdefault(key, []).append((split, file))
    groups = []
    for (kind, _), files in members.items():
        by_split: dict[str, list[str]] = {}
        for split, file in files:
            by_split.setdefault(split, []).append(file.path)
        names = tuple(file.name for _, file in files)
        groups.append(Group(TABLES.get(kind, "text"), OPTIONS.get(kind, {}), by_split, names))
    return groups


def check_content(files: Iterable[File], location: Location) -> None:
    """Raises ValueError for a file that would be read as something else than its author meant."""
    for file in files:
        reason = None if is_url(file.path) else unwanted_content(Path(file.path))
        if reason is not None:
            raise ConfigError(f"data.path={location.name} cannot be read: {reason}")


def _refuse_compressed_parquet(location: Location) -> None:
    """Raises ValueError for a file of Parquet that is compressed as a whole, within which rows cannot be found."""
    for file in location.files:
        if suffix(file.path) == ".parquet" and not file.name.lower().endswith(".parquet"):
            raise ConfigError(
                f"data.path={location.name} has {file.name}, but compressed files of Parquet are not read: "
                "decompress it"
            )


def _declared_files(location: Location, config: str | None, download: bool) -> Listing:
    """Returns the files of each split that a card or the hub declares."""
    from datasets import DownloadConfig, DownloadManager, load_dataset_builder

    config, path = choose_config(location, config), location.name if location.local is None else str(location.local)
    try:
        builder = load_dataset_builder(path, config)
    except ValueError as error:
        raise _config_error(location, config, path) or error from error
    options, found = vars(builder.config), builder.config.data_files
    paths = {str(split): [str(file) for file in files] for split, files in (found or {}).items()}
    kinds = {suffix(path) for files in paths.values() for path in files}
    altered = any(options.get(option) is not None for option in ("field", "filters"))
    declared = altered or not (kinds and (kinds <= {*ROWS} or kinds == {".txt"}))
    if location.local is not None:
        return replace(_declared_in_folder(location, paths), config=config or "", declared=declared)
    if download and not declared:
        manager = DownloadManager(download_config=DownloadConfig(disable_tqdm=True))
        paths = {split: manager.download(files) for split, files in paths.items()}
        declared = {suffix(path) for files in paths.values() for path in files} != kinds
    files = {split: [File(path, path, 0, "") for path in of_split] for split, of_split in paths.items()}
    texts = frozenset(path for of_split in paths.values() for path in of_split if kinds == {".txt"})
    return Listing(files, texts, config=config or "", declared=declared)


def _config_error(location: Location, config: str | None, path: str) -> ConfigError | None:
    """Returns what is wrong with data.config, given a data set that was not opened with it; None where it is right."""
    from datasets import get_dataset_config_names

    names = get_dataset_config_names(path)
    if config in names or (config is None and len(names) < 2):
        return None
    wrong = "has several configs" if config is None else f"has no config {config}"
    return ConfigError(f"data.path={location.name} {wrong}: set data.config to one of {', '.join(names)}")


def _declared_in_folder(location: Location, paths: Mapping[str, list[str]]) -> Listing:
    """Returns the listing of a folder whose card names these paths. Raises ValueError for one outside of the folder."""
    present = {_place(file.path): file for file in location.files}
    files: dict[str, list[File]] = {}
    for split, of_split in paths.items():
        for path in of_split:
            if _place(path) not in present:
                raise ConfigError(
                    f"data.path={location.name} has a dataset card that names {path}, which is no file in it, or is "
                    "hidden or a link: copy that file into the folder"
                )
            files.setdefault(split, []).append(present[_place(path)])
    names = {file.name for of_split in files.values() for file in of_split}
    left_out = tuple(LeftOut(file.name, NO_SPLIT, file.size) for file in location.files if file.name not in names)
    check_content((file for file in location.files if file.name in names), location)
    return Listing(files, frozenset(name for name in names if not is_table(name)), left_out)


def _place(path: str) -> str:
    """Returns a path that is equal for all spellings of a file; a link is not followed."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def choose_config(location: Location, config: str | None) -> str | None:
    """Returns the config to read: for None the first one of a local copy, which may lack the hub's default config."""
    if config is not None or not location.from_local_copy:
        return config
    from datasets import get_dataset_config_names

    return get_dataset_config_names(str(location.local))[0]
