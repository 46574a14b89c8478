"""Held-out data sets of evaluations: text and tables by name or path, encoded with the tokenizer of any model.

A name is builtin/docs, builtin/code, one that an extension offers (`named`), wikitext, tinystories, or a file, a folder
or a name on the hub, as in data.path=...; NAME/CONFIG is one config of a data set. A data set with several configs and
none named has a part for each. The held-out split is the validation split, else the test split; a data set with a
single split is read whole.
`open_training_text` reads the training split instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kleiber.config import hub
from kleiber.data.builtin import Builtin, Domain
from kleiber.data.cache import cache_root
from kleiber.data.dataset import open_tables, rows, table_name, use_splits
from kleiber.data.layout import has_card
from kleiber.data.location import Location, locate
from kleiber.data.named import NamedData, find_named, names
from kleiber.data.reading import read_from
from kleiber.data.sources import RereadableDocument, Source, SourceText
from kleiber.data.texts import open_texts
from kleiber.data.token_files import ValidationWindows, token_files
from kleiber.types import Json, Row
from kleiber.types.contracts import HeldOut
from kleiber.types.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TEXT = "text"  # the column that is read as text
TRAIN = "train"
STREAM = "wikitext-2-v1"  # the config whose rows are pieces of one text
HELD_OUT = ("validation", "valid", "val", "dev", "test")  # names of splits, the best one first
# Names with a config of their own, as the config group `data` has them.
NAMED = {"wikitext": ("Salesforce/wikitext", STREAM), "tinystories": ("roneneldan/TinyStories", None)}


@dataclass(frozen=True)
class DataSet:
    """Held-out data of one name.

    name     as in the names of metrics: builtin/docs, wikitext, blimp/wh_island
    samples  returns the held-out samples, encoded with the tokenizer of the model
    columns  of its table; empty for text that is no table, and for the data of a run
    table    returns the held-out rows as they are; None where `columns` is empty
    of_run   whether it is the validation data of the run itself, which the run's objective reads
    group    name of the data set that it is a part of, such as blimp; None for one that is whole
    label    what figures call it, where its name does not say it
    """

    name: str
    samples: Callable[[], HeldOut]
    columns: tuple[str, ...] = ()
    table: Callable[[], Sequence[Row]] | None = None
    group: str | None = None
    of_run: bool = False
    label: str = ""

    def rows(self, limit: int | None = None) -> Sequence[Row]:
        """The first `limit` rows of the table; all of them for None. Raises ValueError where the data is no table."""
        if self.table is None:
            raise ValueError(f"{self.name} is not a table of rows")
        return self.table()[:limit]


def open_sets(name: str, tokenizer: Tokenizer, context: int) -> list[DataSet]:
    """Finds the data sets of a name or path (see the module), without encoding their text.

    context  tokens of a sample

    Raises ValueError for a name that is nothing of this kind, and for data that cannot be read.
    """
    named = find_named(name)
    if named is not None:
        return [_named_set(named, tokenizer, context)]
    if is_builtin(name):
        sources = builtin_sources(name, tokenizer)
        return [from_source(name, source, tokenizer, context) for name, source in sources.items()]
    location, config = find(name)
    if location.is_text_file:
        return [from_source(location.stem, HeldOutText(location), tokenizer, context)]
    names = [config] if config is not None else config_names(location)
    group = location.stem.lower()
    if len(names) == 1 or name in NAMED:
        whole = name in NAMED or config is None
        return [_table(location, names[0], group if whole else f"{group}/{config}", None, tokenizer, context)]
    return [_table(location, part, f"{group}/{part}", group, tokenizer, context) for part in names]


def open_training_text(name: str, tokenizer: Tokenizer, context: int) -> list[HeldOut]:
    """The text of the training splits of a name or path, as windows; of a data set with a single split, that split.

    Raises ValueError as `open_sets` does, and for a table without the column text.
    """
    if is_builtin(name):
        files = [
            token_files(source, tokenizer, cache_root(None))[0] for source in builtin_sources(name, tokenizer).values()
        ]
        return [windows(name, ValidationWindows(splits["train"], context, tokenizer)) for splits in files]
    location, config = find(name)
    configs = [config] if config is not None else config_names(location)
    sources = [TrainingText(location, part, part == STREAM) for part in configs]
    return [from_source(name, source, tokenizer, context).samples() for source in sources]


def fingerprint(name: str) -> object:
    """JSON-able facts that change with the content of the data sets of a name; for built-in data the name.

    Raises ValueError as `find` does.
    """
    if is_builtin(name):
        return name
    location, config = find(name)
    return [location.fingerprint(), config]


def is_builtin(name: str) -> bool:
    return name == "builtin" or name.startswith("builtin/")


def builtin_sources(name: str, tokenizer: Tokenizer) -> dict[str, Source]:
    """The built-in text of a name, or of both domains for `builtin`, by name. Raises ValueError for another name."""
    named = find_named(name)
    if named is not None:
        return {name: named.evaluated_text()}
    domains: dict[str, Domain] = {"builtin/docs": "docs", "builtin/code": "code"}
    if name != "builtin" and name not in domains:
        raise ValueError(f"data.path={name} must be {', '.join((*domains, *names()))}")
    kind = "bytes" if tokenizer.name == "bytes" else "other"
    chosen: dict[str, Domain] = domains if name == "builtin" else {name: domains[name]}
    return {part: Builtin(domain, kind).sources()[0] for part, domain in chosen.items()}


def find(name: str) -> tuple[Location, str | None]:
    """Where a data set is, and the config that its name chooses; None where it chooses none.

    Raises ValueError for a path that does not exist and is no name on the hub.
    """
    if name in NAMED:
        path, config = NAMED[name]
        return locate(path), config
    whole, part = Path(name).expanduser(), Path(name).name
    parent = whole.parent if whole.parent.is_dir() and whole.parent != Path(".") else hub.local_copy(str(whole.parent))
    if part and "/" in name and not whole.is_file() and parent is not None and has_card(parent):
        location = Location(str(whole.parent), parent, from_local_copy=True)
        if part in config_names(location):
            return location, part
    return locate(name), None


def config_names(location: Location) -> list[str | None]:
    """Names of the configs of a data set; [None] for a file, and where the default config is the only one."""
    location = location.in_reach
    if location.matches is not None or (location.local is not None and not location.has_card):
        return [None]
    if location.local is None and not hub.reachable():  # opening it fails with an explanation
        return [None]
    from datasets import get_dataset_config_names

    with hub.offline() if location.local is not None else nullcontext():
        names = get_dataset_config_names(location.name if location.local is None else str(location.local))
    return [None] if names == ["default"] else [*names]


def from_source(name: str, source: Source, tokenizer: Tokenizer, context: int) -> DataSet:
    """The held-out text of a source."""

    @cache
    def samples() -> HeldOut:
        splits, manifest = token_files(source, tokenizer, cache_root(None))
        if isinstance(source, HeldOutText):
            source.report(manifest)
        return windows(name, ValidationWindows(splits["validation"], context, tokenizer))

    return DataSet(name, samples)


def _named_set(named: NamedData, tokenizer: Tokenizer, context: int) -> DataSet:
    """The rows and the text of data that an extension offers."""

    @cache
    def samples() -> HeldOut:
        return from_source(named.name, named.evaluated_text(), tokenizer, context).samples()

    table = named.rows()
    return DataSet(named.name, samples, tuple(table[0]) if table else (), (lambda: table) if table else None)


def windows(name: str, samples: ValidationWindows) -> HeldOut:
    """The samples. Raises ValueError where there are none."""
    if not len(samples):
        raise ValueError(f"{name} has no held-out text")
    return samples


@dataclass(frozen=True)
class HeldOutText:
    """The held-out split of files of text and of the column `text` of tables, as a text source.

    stream  whether the rows are pieces of one text, not documents
    """

    location: Location
    config: str | None = None
    stream: bool = False

    @property
    def name(self) -> str:
        return f"{table_name(self.location, self.config)}-held-out"

    def identity(self) -> Json:
        return {"held out": self.location.fingerprint(), "config": self.config, "stream": self.stream}

    def split(self, splits: Mapping[str, object]) -> str:
        """Name of the split that is read."""
        return held_out_split(splits)

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens the documents, all of them in the split `validation`."""
        with open_texts(self.location, self.config, (TEXT,), root) as (splits, notes):
            chosen = self.split(splits)
            texts = splits[chosen]
            documents = [RereadableDocument(texts.read)] if self.stream else texts.documents()
            yield SourceText({"validation": documents}, use_splits(notes, {"validation": chosen}))

    def report(self, manifest: Json) -> None:
        """Logs which files were read and which were left out."""
        for line in read_from(self.location.stem, self.location, manifest, None, "document").files:
            log.info("%s", line)


class TrainingText(HeldOutText):
    """The training split of files of text and tables, as a text source.

    Its documents are in the split `validation` too, so that windows of them do not move.
    """

    @property
    def name(self) -> str:
        return f"{table_name(self.location, self.config)}-training"

    def identity(self) -> Json:
        return {"training": self.location.fingerprint(), "config": self.config, "stream": self.stream}

    def split(self, splits: Mapping[str, object]) -> str:
        return TRAIN if TRAIN in splits else held_out_split(splits)


def held_out_split(splits: Mapping[str, object]) -> str:
    """Name of the held-out split: validation, test, or the first one where there is neither."""
    return next((name for name in HELD_OUT if name in splits), next(iter(splits)))


def _table(
    location: Location, config: str | None, name: str, group: str | None, tokenizer: Tokenizer, context: int
) -> DataSet:
    """One config of a data set: its rows, and the samples of its column `text`."""
    with open_tables(location, config, cache_root(None)) as (tables, _):
        columns = tuple(tables[held_out_split(tables)].column_names)

    @cache
    def table() -> Sequence[Row]:
        with open_tables(location, config, cache_root(None)) as (tables, _):
            return list(rows(tables[held_out_split(tables)]))

    text = from_source(name, HeldOutText(location, config, config == STREAM), tokenizer, context)
    return DataSet(name, text.samples, columns, table, group)
