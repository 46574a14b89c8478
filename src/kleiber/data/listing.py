"""The files of a data set by split, those that are left out, and which of them are read together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from kleiber.config.errors import ConfigError
from kleiber.data.contents import SAMPLED_BYTES
from kleiber.data.folders import TABLES, File, LeftOut, describe_left_out, list_names, suffix
from kleiber.data.location import Location
from kleiber.types import Json

ROWS = (".jsonl", ".parquet")  # tables whose rows are read without a copy
NO_SPLIT, UNUSED, NO_TABLE = "in no split", "in an unused split", "no table"  # reasons
WITHOUT = "without "  # the same, followed by columns
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
        splits = {
            split: {
                "files": len(files),
                "bytes": sum(file.size for file in files),
                "texts": sum(file.name in self.texts for file in files),
                "names": [file.name for file in files] if self.named else [],
            }
            for split, files in self.files.items()
        }
        return {"splits": splits, "left_out": [asdict(entry) for entry in self.left_out]}


def with_splits(noted: Json, names: Mapping[str, str]) -> Json:
    """Returns what `Listing.to_json` returned, for the splits that are used.

    names  the data set's own name of each of these splits
    """
    others = {split: facts for split, facts in noted["splits"].items() if split not in names.values()}
    left_out = [
        asdict(LeftOut(split, UNUSED, of_split["bytes"], of_split["files"])) for split, of_split in others.items()
    ]
    splits = {split: noted["splits"][theirs] for split, theirs in names.items() if theirs in noted["splits"]}
    return {"splits": splits, "left_out": [*noted["left_out"], *left_out]}


def describe_files(location: Location, noted: Json, counted: int | None = None, unit: str = "document") -> str:
    """Returns which files were read and which were left out, in a line.

    noted    what `Listing.to_json` returned when the data were prepared
    counted  documents or rows in all splits; None where they were not counted
    unit     "document", "row", or "" for files that are neither texts nor tables
    """
    splits = noted["splits"]
    count, size, texts = (sum(split[key] for split in splits.values()) for key in ("files", "bytes", "texts"))
    of_kind = {"text": texts, "table": count - texts}
    kinds = [f"{number:,} {kind}{'s' * (number != 1)}" for kind, number in of_kind.items() if number and unit]
    units = "" if counted is None else f", {counted:,} {unit}{'s' * (counted != 1)}"
    line = f"{count:,} file{'s' * (count != 1)}, {size:,} bytes{units}" + (f" ({', '.join(kinds)})" if kinds else "")
    for split, of_split in splits.items():
        if of_split["names"]:
            line += f"; {split}: {list_names(of_split['names'], SHOWN)}"
    left_out = [LeftOut(**entry) for entry in all_left_out(location, noted)]
    line += f"; left out: {describe_left_out(left_out)}" if left_out else ""
    is_sampled = location.sampled and any(file.size > SAMPLED_BYTES for file in location.files)
    return f"{line}; changes of large files are looked for in samples of them" if is_sampled else line


def all_left_out(location: Location, noted: Json) -> list[Json]:
    """Returns what `noted` has as left out, and what is never read of a folder."""
    return [*noted["left_out"], *map(asdict, location.left_out)]


def with_columns(listing: Listing, columns: tuple[str, ...], name: str) -> Listing:
    """Returns the listing without the kinds of tables that lack the columns of text; JSON without them is a text.

    name  of the data set

    Raises ValueError for a table without the columns where others of its kind have them, and where no table is left and
    there are no texts or the columns were chosen.
    """
    if listing.declared:
        return listing
    without = [file for file, present in listing.columns.items() if not {*columns} <= {*present}]
    json = frozenset(file for file in without if suffix(file) == ".json")
    kinds = {suffix(file) for file in listing.columns if file not in without}
    for file in without:
        if suffix(file) in kinds and file not in json:
            absent = next(column for column in columns if column not in listing.columns[file])
            raise ConfigError(
                f"data.text={absent}: {file} in data.path={name} has no such column, unlike other {suffix(file)} "
                "files: give the column this name in all of them, or move the file elsewhere; its columns are "
                f"{', '.join(listing.columns[file])}"
            )
    chosen = replace(listing, texts=listing.texts | json)
    chosen = chosen.without((file for file in without if file not in json), f"{WITHOUT}{' and '.join(columns)}")
    if all(file.name in chosen.texts for _, file in chosen.all_files()) and (columns != ("text",) or not chosen.files):
        present = dict.fromkeys(column for file in without for column in listing.columns[file]) or {"text": None}
        absent = next(column for column in columns if column not in present)
        if [*present] == ["text"] and not any(listing.columns[file] for file in without):
            raise ConfigError(
                f"data.text={absent}: data.path={name} has files of plain text, which have no columns: remove data.text"
            )
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
          as those of JSON always have, and texts are none of them
    """
    members: dict[tuple[str, tuple[str, ...]], list[tuple[str, File]]] = {}
    for split, file in listing.all_files():
        kind = ".txt" if file.name in listing.texts else suffix(file.path)
        if rows or (kind not in ROWS and kind != ".txt"):
            key = kind, listing.columns.get(file.name, ()) if kind == ".json" or not rows else ()
            members.setdefault(key, []).append((split, file))
    groups = []
    for (kind, _), files in members.items():
        by_split: dict[str, list[str]] = {}
        for split, file in files:
            by_split.setdefault(split, []).append(file.path)
        names = tuple(file.name for _, file in files)
        groups.append(Group(TABLES.get(kind, "text"), OPTIONS.get(kind, {}), by_split, names))
    return groups
