"""What the files of a data set contain: a checksum of each, whether it is text, and the columns of a table.

Every file is read to its end, so equal checksums mean equal content, whatever the times of the files are. The cache
keeps the answer until a file is written again. Files that are streamed, and those behind URLs, are not read in advance:
their checksums are those of samples or the version that the file system has, and only their beginnings are examined.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import xxhash

from kleiber.config.errors import ConfigError
from kleiber.config.model_size import available_cores
from kleiber.config.urls import is_url
from kleiber.data.blocks import cut_file, open_parquet
from kleiber.data.cache import cache_root, digest
from kleiber.data.folders import File, is_table, suffix
from kleiber.data.parallel import ordered_map
from kleiber.data.read_errors import BLOCK, DAMAGED, FIRST, compression, explain, open_bytes
from kleiber.records.files import DamagedFile, read_json, write_json
from kleiber.records.progress import activity
from kleiber.records.regular_files import make_folder, open_to_read

SCHEMA = "kleiber.contents/1"
PIECES, PIECE = 64, 1 << 16  # places of a file that a sampled checksum reads, and bytes of each
SAMPLED_BYTES = PIECES * PIECE  # a file of more bytes is sampled
AT_ONCE = 32 << 20  # bytes of the files that a worker process examines in turn
FRESH = 2_000_000_000  # nanoseconds within which a further write may not change the times of a file
HEAD = 1 << 20  # bytes in which the columns of a table are looked for
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Content:
    """What a file contains.

    checksum  of its bytes as they are on disk, of samples of them, or the version of a file behind a URL
    columns   of a table, as far as its first rows have them; empty for a text
    reason    why it has no text and no rows, such as "binary"; empty where it has
    defect    what is wrong with a table, as an error says it; empty where nothing was found
    """

    checksum: str
    columns: tuple[str, ...] = ()
    reason: str = ""
    defect: str = ""


def read_contents(base: str, files: Sequence[File], sampled: bool) -> dict[str, Content]:
    """Returns what each file contains, by its name.

    base     path of the data set, which names what the cache keeps
    sampled  as in `examine`
    """
    place = cache_root() / "contents" / f"{digest([base, os.getcwd(), sampled])}.json"
    kept = _read_kept(place)
    contents = {file.name: content for file in files if (content := kept.get((file.name, version_of(file))))}
    missing = [file for file in files if file.name not in contents]
    if missing:
        now = time.time_ns()
        with activity(f"examining the files of {base}", len(missing), "files") as work:
            batches = ordered_map(partial(_examine, sampled), _batches(missing), available_cores())
            for file, content in zip(missing, work.track(itertools.chain.from_iterable(batches)), strict=True):
                contents[file.name] = content
        stable = [file for file in files if now - file.changed > FRESH]
        make_folder(cache_root(), "contents")
        entries = [[file.name, version_of(file), asdict(contents[file.name])] for file in stable]
        write_json(place, {"schema": SCHEMA, "files": entries})
    return {file.name: contents[file.name] for file in files}


def version_of(file: File) -> str:
    """Returns what changes whenever a file is written."""
    return f"{file.size} {file.version}"


def _read_kept(place: Path) -> dict[tuple[str, str], Content]:
    """Returns what the cache has on files, by their names and versions."""
    try:
        kept = read_json(place)
        entries = kept["files"] if kept["schema"] == SCHEMA else []
        return {(name, version): _from_kept(**facts) for name, version, facts in entries}
    except (DamagedFile, KeyError, TypeError, ValueError):
        return {}


def _from_kept(columns: Iterable[str], **facts: str) -> Content:
    return Content(columns=tuple(columns), **facts)


def _batches(files: Iterable[File]) -> Iterator[list[File]]:
    batch, size = [], 0
    for file in files:
        batch.append(file)
        size += file.size + PIECE
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _examine(sampled: bool, files: Sequence[File]) -> list[Content]:
    return [examine(file, sampled) for file in files]


def examine(file: File, sampled: bool = False) -> Content:
    """Returns what a file contains.

    sampled  whether the checksum is that of samples, and only the beginning of a text is decoded

    Raises ConfigError for a file that cannot be read.
    """
    try:
        return _content_of(file, sampled)
    except OSError as error:
        raise ConfigError(f"data.path cannot be read: {file.path}: {error.strerror or error}") from error


def _content_of(file: File, sampled: bool) -> Content:
    checksum = version_of(file) if is_url(file.path) else file_checksum(file.path, sampled)
    if not file.size:
        return Content(checksum, reason="empty")
    columns: tuple[str, ...] = ()
    if is_table(file.path):
        try:
            columns = table_columns(file.path)
        except Exception as error:  # of pyarrow, json and decoders
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return Content(checksum, defect=explain(file.path, error))
        if not columns and suffix(file.path) != ".json":
            return Content(checksum, reason="no rows")
    reason = "" if columns else text_defect(file.path, whole=not sampled and not is_url(file.path))
    return Content(checksum, columns, reason)


def file_checksum(path: str, sampled: bool = False) -> str:
    """Returns the XXH3 checksum of a file; of 64 pieces of a large one if `sampled`."""
    checksum, size = xxhash.xxh3_128(), os.path.getsize(path)
    with open_to_read(Path(path)) as file:
        if sampled and size > PIECES * PIECE:
            for number in range(PIECES):
                file.seek((size - PIECE) * number // (PIECES - 1))
                checksum.update(file.read(PIECE))
            return f"{size} bytes, sampled {checksum.hexdigest()}"
        while block := file.read(BLOCK):
            checksum.update(block)
    return checksum.hexdigest()


def text_defect(path: str, whole: bool = True) -> str:
    """Returns why a file is no text in UTF-8, in a word or two; "" where it is.

    whole  whether it is decoded to its end, not only in the beginning
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_bytes(path) as file:
            first = file.read(FIRST)
            if first.startswith(UTF16):
                return "UTF-16"
            if b"\0" in first:
                return "binary"
            if not first:
                return "empty"
            decoder.decode(first)
            while block := file.read(BLOCK):
                decoder.decode(block)
                if not whole:
                    return ""
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not UTF-8"
    except DAMAGED:
        kind = compression(path)
        if not kind:
            raise
        return f"damaged {kind}"
    return ""


def table_columns(path: str) -> tuple[str, ...]:
    """Returns the columns of a table, as far as its first rows have them; none for a JSON file that is no table."""
    kind = suffix(path)
    if kind == ".parquet":
        with open_parquet(path) as file:
            return tuple(file.schema_arrow.names)
    if kind == ".jsonl":
        return next((tuple(block.names()) for block in cut_file(path, ())), ())
    with open_bytes(path) as file:
        text = file.read(HEAD).decode("utf-8-sig", "replace")
    return json_columns(text) if kind == ".json" else csv_columns(text, "\t" if kind == ".tsv" else ",")


def csv_columns(text: str, delimiter: str) -> tuple[str, ...]:
    """Returns the columns in the header of a table of values with delimiters."""
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return tuple(next((row for row in rows if row), ()))
    except csv.Error:  # a NUL byte, or a field of more than 128 KiB
        return ()


def json_columns(text: str) -> tuple[str, ...]:
    """Returns the keys of the first object in a list, or in a sequence of objects; none for other JSON."""
    text = text.lstrip()
    listed = text.startswith("[")
    try:
        row, end = json.JSONDecoder().raw_decode(text[1:].lstrip() if listed else text)
    except (ValueError, RecursionError):
        return ()
    follows = text[end:].lstrip()
    return tuple(row) if isinstance(row, dict) and (listed or not follows or follows.startswith("{")) else ()
