"""Text from files and folders: nothing lost, nothing guessed in silence, errors that name the place."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from kleiber.data import dataset
from kleiber.data.corpus import TextCorpus
from kleiber.data.text import Text
from kleiber.data.token_files import ValidationWindows

CHECK = """
import sys
from kleiber.data.location import locate
from kleiber.data.text import Text
Text(sys.argv[1]).prepare(16)
print(*sorted({"datasets", "transformers", "tokenizers"} & sys.modules.keys()))
"""


def words(samples: object, corpus: TextCorpus) -> str:
    """All text behind windows."""
    assert isinstance(samples, ValidationWindows)
    return corpus.tokenizer.decode(samples.file.ids.tolist())


def train_text(corpus: TextCorpus) -> str:
    return corpus.tokenizer.decode(corpus.train.file.ids.tolist())  # pyright: ignore[reportAttributeAccessIssue]


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = pyarrow.compress(raw, codec="zstd", asbytes=True)
    path.write_bytes(raw)
    return str(path)


def test_a_text_file_is_one_document_split_by_position(cache: Path, tiny: str) -> None:
    corpus = Text(tiny).prepare(32)
    whole = train_text(corpus) + words(corpus.validation["tiny"], corpus) + words(corpus.test["tiny"], corpus)
    assert whole == Path(tiny).read_text()
    assert corpus.num_bytes == len(train_text(corpus).encode())
    assert (corpus.name, corpus.config) == ("tiny", "")


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_one_line_of_200000_characters(tmp_path: Path, cache: Path, tokenizer: str) -> None:
    path = tmp_path / "line.txt"
    path.write_text("hé 🙂 你好 " * 1000 + "x" * 200_000)
    corpus = Text(str(path), tokenizer=tokenizer).prepare(32)
    whole = train_text(corpus) + words(corpus.validation["line"], corpus) + words(corpus.test["line"], corpus)
    assert whole == path.read_text()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_documents_are_split_by_their_content(tmp_path: Path, cache: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [{"text": f"document {i} speaks of {i * i} and 你好"} for i in range(200)]
    corpus = Text(jsonl(tmp_path / f"rows{suffix}", rows + rows[:50])).prepare(8)
    counts = {name: count["documents"] for name, count in corpus.manifest["rows"]["splits"].items()}
    assert sum(counts.values()) == 250 and 10 <= counts["validation"] <= 20 and 10 <= counts["test"] <= 20
    validation, train = words(corpus.validation["rows"], corpus), train_text(corpus)
    assert not set(validation.split("document ")[1:]) & set(train.split("document ")[1:])
    assert (corpus.train.file.ids == 256).sum() == counts["train"]  # pyright: ignore[reportAttributeAccessIssue]


def test_columns_are_joined(tmp_path: Path, cache: Path) -> None:
    path = jsonl(tmp_path / "two.jsonl", [{"question": f"why {i}", "answer": f"so {i}"} for i in range(30)])
    assert "why 7\nso 7" in train_text(Text(path, text=["question", "answer"]).prepare(8))


def test_each_file_of_a_folder_of_text_files_is_a_document(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(f"letter {i}\n\nwith two lines\n")
    corpus = Text(str(folder)).prepare(8)
    assert sum(count["documents"] for count in corpus.manifest["letters"]["splits"].values()) == 10
    assert "\n\nwith two lines\n" in train_text(corpus)


def test_max_bytes_cuts_every_split(cache: Path, tiny: str) -> None:
    corpus = Text(tiny, max_bytes="1k").prepare(8)
    sizes = [count["bytes"] for count in corpus.manifest["tiny"]["splits"].values()]
    assert max(sizes) == 1000
    assert train_text(corpus) == Path(tiny).read_bytes()[:1000].decode()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"body": "a" * 99}] * 3, {}, r"data\.text=text: .* body"),
        ([{"text": 3}] * 3, {}, "contains int"),
        ([], {}, r"rows\.jsonl"),
        ([{"text": ""}] * 3, {}, "rows"),
        ([{"text": "abc"}] * 3, {}, r"model\.context=64"),
    ],
)
def test_data_that_cannot_be_trained_on_is_named(
    rows: list[dict[str, object]], options: dict[str, str], message: str, tmp_path: Path, cache: Path
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        Text(path, **options).prepare(64)  # pyright: ignore[reportArgumentType]


def test_an_unknown_value_of_rows_is_refused(tiny: str) -> None:
    text = Text(tiny)
    object.__setattr__(text, "rows", "lines")  # past the type checker that runs under pytest
    with pytest.raises(ValueError, match=r"data\.rows=lines"):
        text.source()


@pytest.mark.slow
def test_wikitext_from_a_local_copy(
    shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    with caplog.at_level("INFO", "kleiber"):
        corpus = Text("Salesforce/wikitext", "wikitext-2-v1", rows="stream").prepare(64)
    assert (corpus.name, corpus.config) == ("wikitext", "wikitext-2-v1")
    assert "train 36,718 rows 10,771,246 bytes" in caplog.text
    validation = corpus.validation["wikitext"]
    assert validation.num_bytes == validation.num_tokens == 1_119_083
    assert np.asarray(validation.gather(np.array([0])).tokens)[0, 0] == 256


@pytest.mark.process
@pytest.mark.slow
def test_a_cache_that_is_hit_imports_no_text_library(cache: Path, tiny: str) -> None:
    first = Text(tiny).prepare(16)
    run = subprocess.run([sys.executable, "-c", CHECK, tiny], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
    assert first.hash == Text(tiny).prepare(32).hash


class CountedReads(io.BytesIO):
    """A file that remembers the largest number of bytes that was read at once."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        CountedReads.largest = max(CountedReads.largest, len(content))
        return content

    read1 = read


def test_a_long_line_is_read_in_pieces(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory does not depend on the length of a line, of which only the beginning may be wanted."""
    content = b"word and " * 1_000_000
    path = tmp_path / "line.txt"
    path.write_bytes(content)
    monkeypatch.setattr(CountedReads, "largest", 0)
    monkeypatch.setattr(dataset, "open_bytes", lambda path: CountedReads(content))
    pieces = list(dataset.read_text(str(path)))
    assert "".join(pieces).encode() == content and max(map(len, pieces)) <= dataset.PIECE
    assert 0 < CountedReads.largest <= dataset.PIECE
    corpus = Text(str(path), max_bytes=10_000).prepare(16)
    assert train_text(corpus).encode() == content[:10_000]


@pytest.mark.slow
def test_a_long_file_in_a_folder_is_read_in_pieces(tmp_path: Path, cache: Path) -> None:
    """FAULTS 80."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name} word and " * 1_500_000)
    tracemalloc.start()
    corpus = Text(str(folder), max_bytes=10_000).prepare(16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(train_text(corpus)) == 10_000 and peak < 12 * dataset.PIECE


def test_line_breaks_of_every_system_become_a_line_feed(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "breaks.txt"
    path.write_bytes(b"one\r\ntwo\rthree\nfour \x0b\x0c end" * 100)
    corpus = Text(str(path)).prepare(8)
    whole = train_text(corpus) + words(corpus.validation["breaks"], corpus) + words(corpus.test["breaks"], corpus)
    assert whole == "one\ntwo\nthree\nfour \x0b\x0c end" * 100


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(f"{i} \ufeff notes", encoding="utf-8-sig")
    assert "".join(dataset.read_text(str(folder / "3.txt"))) == "3 \ufeff notes"
    corpus = Text(str(folder)).prepare(8)
    whole = train_text(corpus) + words(corpus.validation["notes"], corpus) + words(corpus.test["notes"], corpus)
    assert whole.count("\ufeff") == 10


def test_a_text_file_has_no_other_column(tmp_path: Path, cache: Path, tiny: str) -> None:
    with pytest.raises(ValueError, match=r"data\.text=nope"):
        Text(tiny, text="nope").prepare(8)
