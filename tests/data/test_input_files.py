"""One file, many shards, compressed files and Parquet are the same data."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
import torch

from kleiber.data.batches import stream
from kleiber.data.corpus import TextCorpus, content_hashes
from kleiber.data.text import Text


def split_texts(corpus: TextCorpus) -> list[list[int]]:
    (name,) = corpus.validation
    files = [corpus.train.file, corpus.validation[name].file, corpus.test[name].file]  # type: ignore[attr-defined]
    return [file.ids.tolist() for file in files]


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
