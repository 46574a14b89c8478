"""Why the files of a data set cannot be read.

Errors of `datasets` and of decoders do not name the file or the line. So once reading has failed, the files are read
again here until one turns out to be damaged: in its compression, its encoding, a line of JSON, or its columns. What
`datasets` would accept and no one wants is looked for before it reads: binary data, text in UTF-16, and columns that
have the same name.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import importlib.util
import io
import json
import lzma
import re
import zlib
from pathlib import Path
from typing import BinaryIO

from kleiber.config.url_secrets import hide_secrets, open_file_system
from kleiber.config.urls import is_url

PACKAGES = {".lz4": "lz4", ".7z": "py7zr", ".zst": "zstandard", ".zstd": "zstandard"}  # of `datasets`, by suffix
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}  # by suffix
MAGIC = {  # by the first bytes
    re.compile(rb"\x1f\x8b"): "gzip",
    re.compile(rb"\x28\xb5\x2f\xfd"): "zstd",
    re.compile(rb"BZh[1-9]1AY&SY"): "bz2",
    re.compile(rb"\xfd7zXZ\x00"): "xz",
}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # errors of files that are cut off or not compressed so
BLOCK = 1 << 20
FIRST = 8000  # bytes that decide whether a file is binary, as in git
NO_ROWS = " corresponds to no data!"  # the end of a message of `datasets`, for a file such as a csv with only a header
DEEP = re.compile(rb'(?:[\[{]\s*(?:"[^"]*"\s*:\s*)?){1000}')  # Arrow, which reads JSON, crashes at 10,000 levels


def compression(path: Path | str) -> str:
    """Returns gzip, zstd, bz2 or xz where the name of a file, or the first bytes of a local one, tell so; else ""."""
    named = COMPRESSION.get(Path(path).suffix.lower(), "")
    if named or is_url(path):
        return named
    with open(path, "rb") as file:
        first = file.read(10)
    return next((name for magic, name in MAGIC.items() if magic.match(first)), "")


def open_bytes(path: Path | str) -> BinaryIO:
    """Opens a file or a URL, decompressed where it is compressed."""
    kind = compression(path)
    if is_url(path):
        system, place = open_file_system(str(path))
        raw = system.open(place, "rb", compression=None if kind == "zstd" else kind or None)
    else:
        openers = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
        raw = openers[kind](path) if kind in openers else open(path, "rb")  # noqa: SIM115 - closed by the caller
    if kind != "zstd":
        return raw  # pyright: ignore[reportReturnType]
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"))  # type: ignore[type-var]


def root_cause(error: BaseException) -> BaseException:
    """Returns the error that `datasets` wrapped in one that only says that an error occurred."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    return error


def explain(path: str, error: BaseException) -> str:
    """Returns what is wrong with a file that raised an error while it was read."""
    reason = None if is_url(path) else defect(Path(path))
    return f"data.path cannot be read: {reason or f'{path}: {first_lines(error)}'}"


def first_lines(error: BaseException) -> str:
    """Returns the beginning of the message of an error."""
    lines = hide_secrets(str(error)).strip().splitlines()
    return "it has no rows" if not lines or lines[0].endswith(NO_ROWS) else " ".join(lines[:2])


def unwanted_content(path: Path) -> str | None:
    """Returns what is wrong with the first bytes of a file, where `datasets` would accept them or crash; else None."""
    if ".parquet" in path.suffixes:
        return None
    try:
        with open_bytes(path) as file:
            first = file.read(FIRST)
    except DAMAGED:
        return None  # `defect` explains it
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{path} is in UTF-16, and must be in UTF-8: iconv -f UTF-16 -t UTF-8 converts it"
    if b"\0" in first:
        return f"{path} is binary or in UTF-16: it has a NUL byte at {first.index(0)}; text must be in UTF-8"
    if ".csv" not in path.suffixes:
        deep = {".json", ".jsonl"} & {*path.suffixes} and DEEP.search(first)
        return f"{path} has values that are nested too deeply" if deep else None
    header, line_break, _ = first.partition(b"\n")
    columns = next(csv.reader([header.decode("utf-8", "replace")])) if line_break and header.strip() else []
    return _repeated(path, columns)


def missing_package(path: str, error: BaseException) -> str | None:
    """Returns which package `datasets` lacked to decompress a file when it raised an error; None for other errors."""
    if not isinstance(error, ImportError) and not str(error).startswith("Compression type"):  # the latter from fsspec
        return None
    package = PACKAGES.get(Path(path).suffix.lower())
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{path} needs the Python package {package}: install it, or decompress the file"


def defect(path: Path) -> str | None:
    """Returns what is wrong with a file, which is read to its end; None where nothing is."""
    try:
        if ".parquet" in path.suffixes:
            return _parquet_defect(path)
        with open_bytes(path) as file:
            defect = unwanted_content(path) or _encoding_defect(path, file)
        return defect or (_json_defect(path) if ".jsonl" in path.suffixes else None)
    except EOFError:
        return f"{path} is cut off: its compressed data ends too early; copy or download it again"
    except (gzip.BadGzipFile, zlib.error) as error:
        return f"{path} is not valid gzip ({error}): copy or download it again, or remove .gz from its name"
    except (OSError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.strerror:
            return f"{path} cannot be read: {error.strerror}"
        return f"{path} is cut off, or no valid {compression(path)} ({error}): copy or download it again"


def _repeated(path: Path, columns: list[str]) -> str | None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    return f"{path} has several columns {', '.join(repeated)}: give each its own name" if repeated else None


def _parquet_defect(path: Path) -> str | None:
    import pyarrow
    import pyarrow.parquet

    try:
        return _repeated(path, pyarrow.parquet.read_schema(path).names)
    except pyarrow.ArrowException as error:
        return f"{path} is not valid Parquet ({error}): copy or download it again"


def _encoding_defect(path: Path, file: BinaryIO) -> str | None:
    decoder, begin = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        block = file.read(BLOCK)
        left = len(decoder.getstate()[0])  # bytes of a character that began in the block before
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = begin - left + error.start
            return f"{path} is not in UTF-8: byte {place} is {error.object[error.start]:#04x}; convert it to UTF-8"
        if not block:
            return None
        begin += len(block)


def _json_defect(path: Path) -> str | None:
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.strip() or "{}", object_pairs_hook=unique_keys)
            except RecursionError:
                return f"{path}, line {number} has values that are nested too deeply"
            except ValueError as error:
                return f"{path}, line {number} is not valid JSON: {error}"
            if not isinstance(row, dict):
                return f"{path}, line {number}: {not_an_object(row)}"
    return None


def not_an_object(row: object) -> str:
    """Returns what is wrong with a line of JSON that is no object."""
    return f'a line must be an object such as {{"text": "..."}}, not {type(row).__name__}'


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the object of these pairs, for the decoder of JSON. Raises ValueError for a key that occurs twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated} occurs twice in an object")
    return row
