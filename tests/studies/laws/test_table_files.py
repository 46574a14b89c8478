"""Tables are read as pandas reads them, and those that would fill the memory are refused with their size."""

import os

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from kleiber.records.regular_files import DamagedFile
from kleiber.studies.laws import table_files
from kleiber.studies.laws.table_files import READERS, read_csv, read_jsonl, read_parquet

FRAME = pd.DataFrame({"N": [1, 2, 3], "L": [3.0, np.nan, 2.5], "kind": ["a", "a", "b"]})


@pytest.mark.parametrize("suffix", READERS)
def test_a_table_is_what_pandas_reads(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    {
        ".csv": lambda: FRAME.to_csv(path, index=False), ".tsv": lambda: FRAME.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: FRAME.to_json(path, orient="records", lines=True), ".parquet": lambda: FRAME.to_parquet(path),
    }[suffix]()  # fmt: skip
    expected = {
        ".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True), ".parquet": pd.read_parquet,
        ".tsv": lambda p: pd.read_csv(p, sep="\t"),
    }[suffix](path)  # fmt: skip
    pd.testing.assert_frame_equal(READERS[suffix](path), expected)


def test_columns_of_lists_are_left_out(tmp_path):
    FRAME.assign(curve=[[1.0], [2.0, 3.0], []]).to_parquet(tmp_path / "t.parquet")
    assert list(read_parquet(tmp_path / "t.parquet").columns) == ["N", "L", "kind"]


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_of_3_gib_is_refused_with_its_size(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"N,D,L\n1,2,3\n")
    os.truncate(path, 3 * 2**30)
    with pytest.raises(DamagedFile, match=r"t\."):
        READERS[suffix](path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFile, match="pipe"):
        READERS[suffix](path)


def test_equal_rows_are_refused_with_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "MAX_CELLS", 2**16)
    monkeypatch.setattr(table_files, "MAX_BYTES", 2**20)
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"N": pyarrow.repeat(1.0, 2**16 + 1)}), path)
    assert path.stat().st_size < 2**12
    with pytest.raises(DamagedFile, match="65,537 cells"):
        read_parquet(path)
    pyarrow.parquet.write_table(pyarrow.table({"N": pyarrow.repeat("x" * 10_000, 2_000)}), path)
    assert path.stat().st_size < 2**16
    with pytest.raises(DamagedFile, match="20,000,000 bytes"):
        read_parquet(path)
    path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(DamagedFile):
        read_parquet(path)


def test_wide_tables_and_long_lines_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(",".join(f"c{number}" for number in range(20_000)) + "\n1\n")
    with pytest.raises(DamagedFile, match="20,000 columns"):
        read_csv(path)
    path.write_text("N\n" + "," * (2**20 + 1))
    with pytest.raises(DamagedFile, match="lines has"):
        read_csv(path)
    monkeypatch.setattr(table_files, "MAX_CELLS", 1000)
    path.write_text("N,L\n" + "1,2\n" * 600)
    with pytest.raises(DamagedFile, match="cells, more than 1,000"):
        read_csv(path)
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(f'{{"c{number}": 1}}\n' for number in range(100)))
    with pytest.raises(DamagedFile, match="cells, more than 1,000"):
        read_jsonl(lines)
    lines.write_text("[" * 100_000)
    with pytest.raises(DamagedFile, match="row 1"):
        read_jsonl(lines)
