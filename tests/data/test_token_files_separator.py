"""Between documents stand the tokens that the tokenizer's own library puts there: in token files and in rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tables import folder

from kleiber.data.text import Text
from kleiber.data.tokenizers import Bytes

NAMES = {"llama": "models/stories260K", "gpt2": "tokenizers/gpt2", "bert": "tokenizers/bert-base-uncased"}
STORIES = [f"Once upon a time there was a fox number {i}.\nIt slept." for i in range(40)]


def prepared(tmp_path: Path, tokenizer: str = "bytes", **options):
    rows = [{"text": text} for text in [*STORIES, ""]]
    path = folder(tmp_path / "stories", train=rows, validation=rows[:3], test=rows[:1])
    return Text(path, tokenizer=tokenizer, **options).prepare(32)


def ids_of(corpus) -> list[int]:
    return corpus.train.file.ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_token_files_equal_the_documents_of_transformers(name: str, shared: Path, tmp_path: Path, cache: Path) -> None:
    from transformers import AutoTokenizer

    path = str(shared / "data" / NAMES[name])
    corpus, theirs = prepared(tmp_path, path), AutoTokenizer.from_pretrained(path)
    documents = [theirs(text).input_ids for text in STORIES]
    if name == "gpt2":  # transformers puts nothing around a text, and the model learned with this token between texts
        documents = [[theirs.eos_token_id, *ids] for ids in documents]
    assert ids_of(corpus) == [i for ids in documents for i in ids]
    row = corpus.train.gather(np.array([1])).tokens[0].tolist()
    assert row == ids_of(corpus)[32:65]


def test_a_separator_that_is_set_stands_in_the_files_and_in_the_hash(shared: Path, tmp_path: Path, cache: Path) -> None:
    path = str(shared / "data" / NAMES["llama"])
    choices = (None, "bos", "eos", ["<s>", "</s>"])
    default, begin, end, around = (prepared(tmp_path, path, separator=choice) for choice in choices)
    assert ids_of(default) == ids_of(begin) and default.hash == begin.hash
    assert [2 if i == 1 else i for i in ids_of(default)] == ids_of(end)
    assert [i for i in ids_of(around) if i != 2] == ids_of(begin) and ids_of(around)[-1] == 2
    assert ids_of(around).count(1) == ids_of(around).count(2) == len(STORIES)
    assert len({default.hash, end.hash, around.hash}) == 3
    assert begin.num_bytes == end.num_bytes == around.num_bytes and around.num_tokens == len(ids_of(around))
    held_out = [corpus.validation["stories"] for corpus in (begin, around)]
    assert held_out[0].num_bytes == held_out[1].num_bytes
    firsts = [rows.first(64).num_bytes for rows in held_out]
    assert all(0 < size <= 64 * 8 for size in firsts) and firsts[1] <= firsts[0]


def test_without_separators_every_byte_but_the_first_is_a_target(tmp_path: Path, cache: Path) -> None:
    plain, joined = prepared(tmp_path), prepared(tmp_path, separator="none")
    assert ids_of(joined) == [i for i in ids_of(plain) if i != Bytes.eos] and plain.hash != joined.hash
    for corpus, missing in ((plain, 0), (joined, 1)):
        held_out = corpus.validation["stories"]
        assert held_out.num_bytes == sum(len(text) for text in STORIES[:3]) - missing
    assert held_out.num_tokens == held_out.num_bytes
    alone = Text(
        folder(tmp_path / "alone", train=[{"text": STORIES[0] * 9}], validation=[{"text": "a"}]), separator="none"
    )
    assert alone.prepare(32).validation == {}, "one token has no target"


def test_bytes_and_their_hash_do_not_change_with_the_end_of_text(tmp_path: Path, cache: Path) -> None:
    default, end = prepared(tmp_path), prepared(tmp_path, separator="eos")
    assert default.hash == end.hash and ids_of(default) == ids_of(end)
    assert default.manifest["stories"]["identity"]["tokenizer"] == Bytes.hash
    with pytest.raises(ValueError, match=r"data\.separator=bos"):
        prepared(tmp_path, separator="bos")


@pytest.mark.parametrize(("separator", "ends"), [("bos", 0), (["bos", "eos"], 1)])
def test_a_document_of_many_chunks_has_one_separator(
    separator: str | list[str], ends: int, shared: Path, tmp_path: Path, cache: Path
) -> None:
    rows = [{"text": "a fox and " * 20_000}, {"text": "a cat " * 20}] * 2
    path = folder(tmp_path / "long", train=rows, validation=rows[:1])
    corpus = Text(path, tokenizer=str(shared / "data" / NAMES["llama"]), separator=separator).prepare(32)
    assert ids_of(corpus).count(1) == len(rows) and ids_of(corpus).count(2) == ends * len(rows)
