"""A cache of its own for every test of the data, and no hub copies unless a test asks for them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from small_run import REPOSITORY

from kleiber.data.text import Text
from kleiber.data.tokenizers import BPE, train_bpe


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KLEIBER_DATA", raising=False)
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny() -> str:
    return str(Path(__file__).with_name("tiny.txt"))


@pytest.fixture(scope="package")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPE:
    source = Text(str(REPOSITORY / "tests/data/tiny.txt")).source()
    return train_bpe([source], 400, tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="package")
def lines() -> list[str]:
    return [f"Document {n} tells of the number {n * n} and of nothing else at all." for n in range(60)]


@pytest.fixture(scope="package")
def text(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Sixty documents of one line, and three of them once more, one with another ending."""
    path = tmp_path_factory.mktemp("text") / "lines.jsonl"
    repeated = [*lines, lines[3], lines[4], f"{lines[5]} Indeed."]
    path.write_text("\n".join(json.dumps({"text": line}) for line in repeated))
    return Text(str(path))


ROW_TEXTS = [f"document {i} " + "hé 🙂 你好\n" * (i % 40) for i in range(300)]
ROW_LINES = "\n\n".join(
    json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(ROW_TEXTS)
)


@pytest.fixture(scope="package")
def row_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in files of every kind."""
    home = tmp_path_factory.mktemp("files")
    raw = ROW_LINES.encode()
    contents = {
        ".jsonl": raw,
        "-of-windows.jsonl": b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n") + b"\r\n",
        ".jsonl.gz": gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]),
        ".jsonl.zst": b"".join(pyarrow.compress(part, "zstd", asbytes=True) for part in (raw[:5000], raw[5000:])),
    }
    for suffix, content in contents.items():
        (home / f"rows{suffix}").write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": ROW_TEXTS}), home / "rows.parquet", row_group_size=17)
    return {suffix: home / f"rows{suffix}" for suffix in (*contents, ".parquet")}


@pytest.fixture(scope="package")
def row_texts() -> list[str]:
    """The texts of `row_files`."""
    return ROW_TEXTS
