"""Reads csv, jsonl and parquet files as tables of bounded size: a short file can stand for more than the memory holds.

Errors name the file, and say how large the table is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kleiber.records.files import load_json
from kleiber.records.regular_files import DamagedFile, open_to_read, read_bytes

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MAX_BYTES = 2**27  # of a file, uncompressed
MAX_CELLS = 2**24
MAX_COLUMNS, MAX_LINE_BYTES = 2**14, 2**20


def read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """Reads a csv file, or one with another separator, whose columns must have different names."""
    content = read_bytes(path, MAX_BYTES)
    lines = content.count(b"\n") + 1
    longest = max(map(len, _lines(content)), default=0)
    if longest > MAX_LINE_BYTES:
        raise DamagedFile(path, f"one of its lines has {longest:,} bytes, more than {MAX_LINE_BYTES:,}")
    mark = separator.encode()
    first = content[: content.find(b"\n")].count(mark) + 1 if b"\n" in content else content.count(mark) + 1
    check_size(path, first, max(lines * first, content.count(mark)))
    names = pd.read_csv(io.BytesIO(content), header=None, nrows=1, dtype=str, sep=separator).iloc[0].dropna()
    check_names(path, pd.Index(names))
    return pd.read_csv(io.BytesIO(content), sep=separator)


def read_jsonl(path: Path) -> pd.DataFrame:
    """Reads a file with a JSON object on each line, whose keys must have different names."""
    content = read_bytes(path, MAX_BYTES)
    names: set[str] = set()
    for number, line in enumerate(filter(bytes.strip, _lines(content)), 1):
        try:
            row = load_json(line.decode())
        except RecursionError:
            raise DamagedFile(path, f"its row {number} is nested too deeply") from None
        names.update(row if isinstance(row, dict) else ())
        check_size(path, len(names), len(names) * number)
    frame = pd.read_json(io.BytesIO(content), lines=True)
    first = next(filter(bytes.strip, _lines(content)), b"{}")
    check_names(path, pd.Index([name for name, _ in json.loads(first, object_pairs_hook=list)]))
    return frame


def read_parquet(path: Path) -> pd.DataFrame:
    """Reads the columns of a parquet file that contain numbers or texts."""
    import pyarrow
    import pyarrow.parquet

    with open_to_read(path) as file:
        try:
            source = pyarrow.parquet.ParquetFile(file)
            schema, count = source.schema_arrow, source.metadata.num_rows
            check_names(path, pd.Index(schema.names))
            flat = [column.name for column in schema if not pyarrow.types.is_nested(column.type)]
            check_size(path, len(flat), count * len(flat), _uncompressed(source.metadata))
            texts = [column.name for column in schema if column.name in flat and _is_text(column.type)]
            # Equal texts are one text in a dictionary, and as plain texts would each take memory.
            coded = pyarrow.parquet.read_table(file, columns=texts, read_dictionary=texts)
            check_size(path, len(flat), count * len(flat), sum(map(_text_bytes, coded.columns)))
        except (pyarrow.ArrowException, OSError) as error:
            raise DamagedFile(path, str(error)) from None
        file.seek(0)
        return pd.read_parquet(file, columns=None if len(flat) == len(schema) else flat)


def _uncompressed(meta: pyarrow.parquet.FileMetaData) -> int:
    """Returns the bytes of all columns of a parquet file, with equal values as its dictionaries keep them."""
    groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
    return sum(group.column(number).total_uncompressed_size for group in groups for number in range(meta.num_columns))


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _text_bytes(column: pyarrow.ChunkedArray) -> int:
    """Returns the bytes of all texts in a column of codes."""
    from pyarrow import compute

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    lengths = [
        compute.call_function("binary_length", [chunk.dictionary]).cast("int64").take(chunk.indices) for chunk in chunks
    ]
    return sum(compute.call_function("sum", [each]).as_py() or 0 for each in lengths)


def _lines(content: bytes) -> Iterator[bytes]:
    """Yields the lines of a file, without another copy of all of them."""
    return iter(io.BytesIO(content))


def check_size(path: Path, columns: int, cells: int, size: int = 0) -> None:
    """Raises DamagedFile for a table that is too large."""
    limits = (columns, MAX_COLUMNS, "columns"), (cells, MAX_CELLS, "cells"), (size, MAX_BYTES, "bytes")
    for number, most, unit in limits:
        if number > most:
            raise DamagedFile(path, f"the table has {number:,} {unit}, more than {most:,}")


def check_names(path: Path, names: pd.Index) -> None:
    """Raises DamagedFile where several columns have one name, since pandas renames or drops them."""
    repeated = names[names.duplicated()].unique().astype(str).tolist()
    if repeated:
        listed = ", ".join(map(repr, repeated))
        raise DamagedFile(path, f"it has several columns named {listed}: rename or remove them")


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": read_csv, ".tsv": partial(read_csv, separator="\t"), ".jsonl": read_jsonl, ".parquet": read_parquet,
}  # fmt: skip
