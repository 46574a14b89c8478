"""The corpus of a text that is encoded while a model trains on it: its files, its tokenizer and its held-out documents.

Where the data set has no validation split, a hundredth of its documents is held out, by the hash of each. So equal
documents are in the same split, and nothing must be read to know which. Only the first held-out documents are scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kleiber.config.model_size import available_cores
from kleiber.data.blocks import Rows, cut_file
from kleiber.data.cache import cache_root, digest
from kleiber.data.corpus import TextCorpus, choose_tokenizer
from kleiber.data.dataset import named_errors, notes_of, standard_names, use_splits
from kleiber.data.folders import File
from kleiber.data.input_files import list_files
from kleiber.data.listing import Listing, table_groups, with_columns
from kleiber.data.location import Location
from kleiber.data.parallel import ordered_map
from kleiber.data.reading import read_from
from kleiber.data.sources import SourceText, limit_bytes
from kleiber.data.splits import HashSplit
from kleiber.data.streaming import StreamedText, StreamedWindows
from kleiber.data.token_files import ValidationWindows, token_files
from kleiber.types import Json

HELD_OUT = HashSplit(("validation", "train"), (2**64 // 100,))
SCORED_BYTES = 2_000_000  # text of each held-out split at most


@dataclass(frozen=True)
class StreamedFiles:
    """The first documents of some splits of a data set of files: a source of text.

    notes   on the files, for the manifest
    files   by split
    splits  those that are read: train, for a tokenizer, or those that are held out
    """

    name: str
    location: Location
    notes: Json
    columns: tuple[str, ...]
    files: Mapping[str, Sequence[str]]
    splits: tuple[str, ...]
    max_bytes: int | None

    def identity(self) -> Json:
        options = {"config": self.notes["config"], "columns": self.columns, "max_bytes": self.max_bytes}
        return {"text": self.location.fingerprint(), "first": self.splits, "files": self.files, **options}

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens the documents of each split."""
        documents = {name: limit_bytes(([text] for text in self._texts(name)), self.max_bytes) for name in self.splits}
        yield SourceText(documents, self.notes)

    def rule(self, split: str) -> HashSplit:
        """Returns what tells the documents of a split from the others in its files."""
        return HashSplit((split,)) if "validation" in self.files or split == "test" else HELD_OUT

    def _texts(self, split: str) -> Iterator[str]:
        rule, paths = self.rule(split), self.files.get(split, self.files["train"])
        blocks = (replace(block, split=rule) for path in paths for block in cut_file(path, self.columns))
        for texts in ordered_map(partial(texts_of_split, split), blocks, available_cores()):
            yield from texts


def texts_of_split(name: str, rows: Rows) -> list[str]:
    """Returns the texts among the rows that are in the split `name`."""
    return [text for text in rows.texts() if rows.split(text) == name]


def list_streamed(location: Location, config: str | None, columns: tuple[str, ...]) -> Listing:
    """Returns the files of a data set. Raises ValueError for tables that only `datasets` can read."""
    with named_errors(location, config):
        listing = with_columns(list_files(location, config, download=False), columns, location.name)
    if listing.declared or table_groups(listing, rows=False):
        raise ValueError(
            f"data.streaming=true reads JSON lines, Parquet and files of text, and data.path={location.name} has other "
            "tables: convert them, or set data.streaming=null"
        )
    return listing


def file_contents(location: Location, files: Iterable[File]) -> list[str]:
    """Returns what changes with the content of each file: a checksum, that of samples of a large file, or its URL."""
    contents = {} if location.on_hub else location.contents
    return [contents[file.name].checksum if file.name in contents else file.path for file in files]


def prepare_stream(
    name: str,
    location: Location,
    config: str | None,
    columns: tuple[str, ...],
    tokenizer: str,
    vocab_size: int | None,
    separator: str | list[str] | None,
    max_bytes: int | None,
    context: int,
    buffer: int,
    cache: Path | None,
) -> TextCorpus:
    """Finds the files, trains `bpe` on the first text of them, and encodes the held-out documents that are scored.

    buffer  tokens whose windows are permuted

    Raises ValueError for files that only `datasets` can read, for a column that they lack, and where no document is
    held out.
    """
    if context < 1:
        raise ValueError(f"model.context={context} must be >= 1")
    root = cache_root(cache)
    listing = list_streamed(location, config, columns)
    names = standard_names(listing.files, location.name)
    files = {split: [file.path for file in listing.files[theirs]] for split, theirs in names.items()}
    for block in itertools.islice((block for path in files["train"] for block in cut_file(path, columns)), 1):
        block.check_columns(location.name)
    notes = use_splits(notes_of(location, listing), names)
    train = StreamedFiles(name, location, notes, columns, files, ("train",), max_bytes)
    held_out = ("validation", "test") if "test" in files else ("validation",)
    limit = SCORED_BYTES if max_bytes is None else min(max_bytes, SCORED_BYTES)
    encoder = choose_tokenizer(tokenizer, vocab_size, [train], root, separator)
    scored, manifest = token_files(replace(train, splits=held_out, max_bytes=limit), encoder, root)
    if not len(scored["validation"].ids):
        raise ValueError(
            f"data.streaming=true holds a hundredth of the documents out, and data.path={location.name} has too few: "
            "give the data set a validation split, or set data.streaming=null"
        )
    contents = {split: file_contents(location, listing.files[theirs]) for split, theirs in names.items()}
    key = digest([encoder.data_hash, columns, contents, max_bytes])
    text = StreamedText(files["train"], columns, train.rule("train"), encoder, key, max_bytes)
    windows = {
        split: {name: ValidationWindows(scored[split], context, encoder)}
        for split in held_out
        if len(scored[split].ids)
    }
    return TextCorpus(
        name=name,
        config=listing.config,
        hash=key,
        tokenizer=encoder,
        train=StreamedWindows(text, context, buffer),
        validation=dict(windows["validation"]),
        test=dict(windows.get("test", {})),
        reading=read_from(name, location, manifest, None, "document"),
    )
