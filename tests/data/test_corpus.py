"""A corpus: its tokenizer, its limits, and a hash of its content alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.data.corpus import EncodedTable, TableRows, Unknown, parse_bytes, prepare
from kleiber.data.text import Text
from kleiber.data.tokenizers import Bytes, train_bpe


def test_a_vocabulary_size_that_nothing_uses_is_refused(cache: Path, tiny: str) -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size=512.*data\.tokenizer=bpe"):
        Text(tiny, vocab_size=512).prepare(16)


def test_the_hash_is_of_the_content_and_not_of_the_path(cache: Path, tmp_path: Path, tiny: str) -> None:
    copy = tmp_path / "other.txt"
    copy.write_bytes(Path(tiny).read_bytes())
    original, same, other = (
        prepare("text", "", [Text(path, max_bytes=size).source()], "bytes", None, 16, cache)
        for path, size in ((tiny, None), (str(copy), None), (tiny, 900))
    )
    assert original.hash == same.hash != other.hash
    assert original.num_bytes == same.num_bytes > other.num_bytes == 900 and original.num_tokens == len(
        original.train.file.ids
    )


def test_several_sources_are_scored_separately_and_each_read_once_an_epoch(
    cache: Path, tmp_path: Path, tiny: str
) -> None:
    (tmp_path / "second.txt").write_bytes(Path(tiny).read_text()[:2000].encode())
    sources = [Text(path).source() for path in (tiny, str(tmp_path / "second.txt"))]
    corpus = prepare("pair", "both", sources, "bytes", None, 16, cache)
    assert set(corpus.validation) == set(corpus.test) == {"tiny", "second"}
    assert len(corpus.train) == sum(len(prepare("", "", [s], "bytes", None, 16, cache).train) for s in sources)
    with pytest.raises(ValueError, match=r"model\.context=0"):
        prepare("pair", "both", sources, "bytes", None, 0, cache)


@pytest.mark.parametrize(("value", "number"), [(None, None), ("20M", 20_000_000), (7, 7), (0.2, 1)])
def test_numbers_of_bytes(value: str | float | None, number: int | None) -> None:
    assert parse_bytes(value) == number


def test_a_corpus_without_text_has_a_tokenizer_and_nothing_to_score(cache: Path, tmp_path: Path, tiny: str) -> None:
    tokenizer = train_bpe([Text(tiny).source()], 300, tmp_path)
    corpus = Unknown(str(tokenizer.path.parent)).prepare(16)
    assert corpus.tokenizer.encode("a text") == tokenizer.encode("a text")
    assert corpus.validation == {} and len(corpus.train) == 0 and corpus.num_tokens == 0


class Rows(TableRows):
    """A split of `count` samples."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def describe(self, counts: dict) -> str:
        return f"{self.count} of {counts['rows']}"

    def explain_empty(self, split: str) -> str:
        return f"{split} is empty"


@pytest.mark.parametrize("empty", [None, "train", "validation", "test"])
def test_only_the_split_for_testing_may_be_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: str | None
) -> None:
    caplog.set_level("INFO")
    counts = {name: 0 if name == empty else number for number, name in enumerate(("train", "validation", "test"), 3)}
    manifest = {"splits": {name: {"rows": 9} for name in counts}}
    table = EncodedTable("toy", "toy.jsonl", Bytes(), tmp_path, tmp_path, manifest)
    if empty in ("train", "validation"):
        with pytest.raises(ValueError, match=rf"data\.path=toy\.jsonl: {empty}"):
            table.samples(lambda path: Rows(counts[path.name]))
        return
    samples = table.samples(lambda path: Rows(counts[path.name]))
    assert {name: len(split) for name, split in samples.items()} == counts
    assert all(f"{name}: {count} of 9" in caplog.text for name, count in counts.items())
