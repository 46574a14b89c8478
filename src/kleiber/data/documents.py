"""The documents of a text by name or path, read as they are, for descriptions of data. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kleiber.data.builtin import Builtin
from kleiber.data.cache import cache_root
from kleiber.data.listing import all_left_out
from kleiber.data.location import Splits, locate
from kleiber.data.named import find_named, names
from kleiber.data.reading import read_from
from kleiber.data.sources import NOTHING_READ, Document, Reading, limit_bytes
from kleiber.data.texts import open_rows
from kleiber.types import Json

NAMED = {"wikitext": ("Salesforce/wikitext", "wikitext-2-v1"), "tinystories": ("roneneldan/TinyStories", None)}


@dataclass(frozen=True)
class Documents:
    """The training documents of a text, which can be read once.

    files    of each split, and those that are left out, as `kleiber data --json` writes them; None for built-in text
    reading  the same in a sentence
    """

    texts: Iterator[str]
    files: Json | None = None
    reading: Reading = NOTHING_READ


@contextmanager
def open_documents(
    path: str,
    config: str | None = None,
    column: str = "text",
    max_bytes: int | None = None,
    splits: Splits | None = None,
) -> Iterator[Documents]:
    """Opens the training documents at a path.

    path       builtin/docs, builtin/code, builtin/occupations (without bias), wikitext, tinystories, a file, a folder
               or a name on the hub
    config     of the data set; None for the default one
    column     of a table
    max_bytes  at most that much text; None for all of it
    splits     `files`: the names of files decide about splits (see `locate`)

    Raises ValueError for a path that is nothing of this kind, and for a table without that column.
    """
    root = cache_root()
    if splits == "files" and (path.startswith("builtin/") or path in NAMED):
        raise ValueError(f"data.splits=files is for folders, and {path} has splits of its own: remove data.splits")
    if path.startswith("builtin/"):
        named = find_named(path)
        if named is not None:
            source = named.text(max_bytes)
        elif path in ("builtin/docs", "builtin/code"):
            source = Builtin("docs" if path == "builtin/docs" else "code", max_bytes=max_bytes).sources()[0]
        else:
            raise ValueError(f"{path} must be {', '.join(('builtin/docs', 'builtin/code', *names()))}")
        with source.open_text(root) as text:
            yield Documents("".join(document) for document in text.documents["train"])
        return
    if path in NAMED and config is None:
        path, config = NAMED[path]
    location = locate(path, splits)
    with open_rows(location, config, (column,), root) as (texts, notes):
        reading = read_from(location.stem, location, notes, None, "document")
        files = {**notes["read"], "left_out": all_left_out(location, notes["read"])} if "read" in notes else None
        yield Documents(joined(texts["train"].documents(), max_bytes), files, reading)


def joined(documents: Iterable[Document], max_bytes: int | None) -> Iterator[str]:
    """Yields the texts of documents up to a number of bytes, and cuts the last one."""
    return ("".join(document) for document in limit_bytes(documents, max_bytes))
