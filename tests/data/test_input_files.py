"""All files of a folder are read, and one file, many shards, compressed files and Parquet are the same data."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from kleiber.data.batches import stream
from kleiber.data.corpus import TextCorpus, content_hashes
from kleiber.data.labelled import Labelled
from kleiber.data.text import Text

ODD = {  # the files of a folder that a person might have: content, and whether it is read
    "chapter1.txt": b"the first chapter", "chapter2.txt": b"the second chapter", "train-travel.txt": b"about trains",
    "test/notes.md": b"# notes", "test/deep/page.rst": b"a page", "valid.py": b"import os", "LICENSE": b"a license",
    "paper.tex": b"a paper", "index.html": b"<p>a page</p>", "part1.jsonl": b'{"text": "row one"}\n{"text": "row two"}',
    "part2.jsonl.gz": gzip.compress(b'{"text": "row three"}'), "eval.jsonl": b'{"text": "row four"}',
    "rows.csv": b"id,text\n1,row five\n", "rows.tsv": b"id\ttext\n1\trow six\n",
    "rows.json": b'[{"text": "row seven"}]', "package.json": b'{"name": "package"}',
}  # fmt: skip
SKIPPED = {"logo.png": b"\x89PNG\0", "latin.txt": b"caf\xe9", "empty.md": b"", ".hidden/a.txt": b"hidden"}
ROWS = ["row one", "row two", "row three", "row four", "row five", "row six", "row seven"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    for name, content in (ODD | SKIPPED).items():
        path = tmp_path / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "odd"


def documents(corpus: TextCorpus) -> Counter[str]:
    """All documents of all splits."""
    texts = "".join(corpus.tokenizer.decode(ids) for ids in separated(corpus))
    return Counter(texts.split("\x00")[1:])


def separated(corpus: TextCorpus) -> list[list[int]]:
    """The ids of each split, with a zero byte for the separator."""
    return [[0 if i == corpus.tokenizer.eos else i for i in ids] for ids in split_texts(corpus)]


def split_texts(corpus: TextCorpus) -> list[list[int]]:
    (name,) = corpus.validation
    files = [corpus.train.file, corpus.validation[name].file, corpus.test[name].file]  # type: ignore[attr-defined]
    return [file.ids.tolist() for file in files]


@pytest.mark.slow
def test_one_file_many_shards_and_parquet_have_the_same_tokens(
    row_files: dict[str, Path], tmp_path: Path, cache: Path
) -> None:
    corpora = [Text(str(path), tokenizer="bytes").prepare(16) for path in row_files.values()]
    home = tmp_path / "shards"
    home.mkdir()
    lines = row_files[".jsonl"].read_text().split("\n\n")
    for number in range(20):
        (home / f"part-{number:03d}.jsonl").write_text("\n".join(lines[15 * number : 15 * number + 15]))
    corpora += [Text(str(home)).prepare(16), Text(f"{home}/part-*.jsonl").prepare(16)]
    assert len({corpus.hash for corpus in corpora}) == 1
    assert corpora[-1].name == "shards" and len(split_texts(corpora[0])[1]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_compressed_shards_give_the_batches_of_one_file(count: int, tmp_path: Path, cache: Path) -> None:
    lines = [json.dumps({"text": f"document {i} " + "river " * (i % 50)}) for i in range(10 * count)]
    (tmp_path / "whole.jsonl").write_text("\n".join(lines))
    home = tmp_path / "shards"
    home.mkdir()
    for number in range(count):
        part = "\n".join(lines[10 * number : 10 * number + 10])
        (home / f"part-{number:05d}.jsonl.gz").write_bytes(gzip.compress(part.encode()))
    whole, sharded = Text(str(tmp_path / "whole.jsonl")).prepare(32), Text(str(home)).prepare(32)
    assert whole.hash == sharded.hash and content_hashes(whole)["whole"] == content_hashes(sharded)["shards"]
    for a, b in itertools.islice(zip(stream(whole.train, 3, 0, 16), stream(sharded.train, 3, 0, 16), strict=True), 20):
        assert torch.equal(a.tokens, b.tokens)


def test_every_file_of_a_folder_is_read_whatever_its_name_and_ending(odd: Path, cache: Path) -> None:
    """FAULTS 97, 98."""
    corpus = Text(str(odd)).prepare(4)
    texts = [content.decode() for name, content in ODD.items() if not name.startswith(("part", "eval", "rows"))]
    assert documents(corpus) == Counter([*texts, *ROWS])
    noted = corpus.manifest["odd"]["read"]
    total = {"files": len(ODD), "bytes": sum(map(len, ODD.values())), "texts": len(texts), "names": []}
    assert noted["splits"]["train"] == total
    reasons = {entry["name"]: entry["reason"] for entry in noted["left_out"]}
    assert reasons == {"logo.png": "binary", "latin.txt": "not UTF-8", "empty.md": "empty"}
    (line,) = corpus.reading.files
    assert f"{len(ODD)} files" in line and f"{len(texts) + len(ROWS)} documents" in line and ".hidden/" in line
    assert all(name in line for name in reasons)


@pytest.mark.slow
def test_many_texts_with_names_of_splits_are_all_read(tmp_path: Path, cache: Path) -> None:
    """FAULTS 97: of such a folder `datasets` reads three files."""
    for number in range(500):
        name = {10: "train-travel", 20: "validation", 30: "my_test"}.get(number, f"text-{number}")
        (tmp_path / f"{name}.txt").write_text(f"text number {number}")
    corpus = Text(str(tmp_path)).prepare(4)
    assert documents(corpus) == Counter(f"text number {number}" for number in range(500))


def test_names_decide_about_splits_on_request_and_all_files_are_in_one(odd: Path, cache: Path) -> None:
    corpus = Text(str(odd), splits="files").prepare(4)
    noted = corpus.manifest["odd"]["read"]["splits"]
    assert noted["validation"]["names"] == ["eval.jsonl", "valid.py"]
    assert noted["test"]["names"] == ["test/deep/page.rst", "test/notes.md"]
    assert sorted(name for split in noted.values() for name in split["names"]) == sorted(ODD)
    assert "validation: eval.jsonl, valid.py" in corpus.reading.files[0]
    held_out = corpus.tokenizer.decode(np.asarray(corpus.validation["odd"].file.ids).tolist())  # type: ignore[attr-defined]
    assert "row four" in held_out and "import os" in held_out and "row one" not in held_out
    assert corpus.hash != Text(str(odd)).prepare(4).hash
    (odd / "eval.jsonl").unlink()
    (odd / "valid.py").unlink()
    (odd / "test").rename(odd / "tests")
    (odd / "train-travel.txt").unlink()
    with pytest.raises(
        ValueError, match=r"data\.splits=files: data\.path=.* has no file or folder that is named after"
    ):
        Text(str(odd), splits="files").prepare(4)


@pytest.mark.slow
def test_a_stream_reads_the_same_files(odd: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="has other tables"):
        Text(str(odd), streaming=True).prepare(4)
    for name in ("rows.csv", "rows.tsv", "rows.json"):
        (odd / name).unlink()
    streamed = Text(str(odd), streaming=True, splits="files").prepare(4)
    prepared = Text(str(odd), splits="files").prepare(4)
    assert streamed.reading.files[0].partition(" (")[2] == prepared.reading.files[0].partition(" (")[2]
    (odd / "part3.jsonl").write_text('{"text": "row"}\n' * 300_000)
    assert "in samples of them" in Text(str(odd), streaming=True, splits="files").prepare(4).reading.files[0]


def test_a_table_of_labels_leaves_texts_out_and_names_no_split_of_its_files(tmp_path: Path, cache: Path) -> None:
    rows = [{"text": f"review {i}", "label": i % 2} for i in range(40)]
    home = tmp_path / "reviews"
    home.mkdir()
    for name, part in (("train.jsonl", rows[:20]), ("part-two.jsonl", rows[20:])):
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    (home / "README.md").write_text("about the reviews")
    (home / "a.json").write_text('{"files": [[], "a"], "name": {"first": []}}')
    corpus = Labelled(str(home)).prepare(16)
    assert len(corpus.train) + len(corpus.validation[corpus.name]) == 40
    assert "2 files" in corpus.reading.files[0] and "1 no table (README.md)" in corpus.reading.files[0]
    assert "1 without the columns (a.json)" in corpus.reading.files[0]
    (home / "part-two.jsonl").rename(home / "dev.jsonl")
    named = Labelled(str(home), splits="files").prepare(16)
    assert (len(named.train), len(named.validation[named.name])) == (20, 20)


def test_a_card_names_files_of_its_folder_only_and_files_have_no_config(tmp_path: Path, cache: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret.jsonl").write_text('{"text": "a secret"}\n' * 9)
    (home / "rows.jsonl").write_text('{"text": "a row"}\n' * 9)
    with pytest.raises(ValueError, match=r"data\.config=main: .* has no configs"):
        Text(str(home), "main").prepare(4)
    (home / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for name in ("link.jsonl", "../secret.jsonl", "rows.jsonl"):
        (home / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files: {name}\n---\n")
        if name == "rows.jsonl":
            corpus = Text(str(home), "main").prepare(4)
            assert corpus.config == "main" and "1 in no split (README.md)" in corpus.reading.files[0]
            continue
        with pytest.raises(ValueError, match=r"dataset card that names .*jsonl, which is no file in it"):
            Text(str(home), "main").prepare(4)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "rows.jsonl", "rows.csv", "folder"])
def test_a_change_of_equal_size_and_time_is_another_text(name: str, tmp_path: Path, cache: Path) -> None:
    """FAULTS 110."""
    rows = "".join(f"document {i} of a text\n" for i in range(50))
    lines = {".jsonl": [json.dumps({"text": row}) for row in rows.splitlines()], ".csv": ["text", *rows.splitlines()]}
    path = tmp_path / (name if name != "folder" else "folder/b.rst")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines.get(path.suffix, [rows])))
    place = str(tmp_path / name)
    first, facts = Text(place).prepare(4).hash, path.stat()
    path.write_text(path.read_text().replace("document 7 ", "dokument 7 "))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size and path.stat().st_mtime_ns == facts.st_mtime_ns
    assert Text(place).prepare(4).hash != first
