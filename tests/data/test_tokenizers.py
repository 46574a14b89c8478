"""Tokenizers are exact and count the bytes of every token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from odd_texts import ODD, noise

from kleiber.data import tokenizers as module
from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.data.sources import CHUNK
from kleiber.data.text import Text
from kleiber.data.tokenizers import BPE, Bytes, train_bpe
from kleiber.records.regular_files import DamagedFile


def test_bytes_are_exact() -> None:
    tokenizer = Bytes()
    for text in ODD + noise(100):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.vocab_size == 272


def test_bpe_is_exact_and_counts_bytes(bpe: BPE) -> None:
    for text in ODD + noise(200):
        ids = bpe.encode(text)
        assert bpe.decode(ids) == text
        assert bpe.token_bytes[ids].sum() == len(text.encode())
        assert not {bpe.eos, bpe.mask} & set(ids)
    assert bpe.num_tokens == 400 and bpe.vocab_size == 400


def test_tiktoken_gives_the_ids_of_tokenizers(bpe: BPE, tiny: str) -> None:
    from tokenizers import Tokenizer

    slow = Tokenizer.from_file(str(bpe.path))
    texts = [text for text in ODD if "<|" not in text] + noise(300) + [Path(tiny).read_text(), "y" * 1000, " " * 100]
    for text, ids in zip(texts, bpe.encode_many(texts), strict=True):
        assert slow.encode(text).ids == ids.tolist(), text


def test_bpe_is_the_same_when_trained_again(bpe: BPE, tmp_path: Path, tiny: str) -> None:
    again = train_bpe([Text(tiny).source()], 400, tmp_path)
    assert again.hash == bpe.hash
    assert train_bpe([Text(tiny).source()], 300, tmp_path).hash != bpe.hash


def test_bpe_is_trained_on_a_bounded_part_of_a_single_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "TRAIN_CHARACTERS", 100_000)
    monkeypatch.setattr(module, "_counted", lambda text, work: (read.append(chunk) or chunk for chunk in text))
    (tmp_path / "long.txt").write_text("of words and words " * 50_000)
    train_bpe([Text(f"{tmp_path}/long.txt").source()], 300, tmp_path)
    assert 100_000 <= sum(map(len, read)) <= 100_000 + CHUNK


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path: Path, tiny: str) -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size=100"):
        train_bpe([Text(tiny).source()], 100, tmp_path)


def test_a_lone_surrogate_is_a_question_mark_for_every_tokenizer(bpe: BPE, tmp_path: Path) -> None:
    lone, plain = "a river\ud83d \U0001f642", "a river? \U0001f642"
    assert Bytes().encode(lone) == Bytes().encode(plain)
    hashes = []
    for text in (lone, plain):
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"{n} {text}"}) for n in range(99)))
        hashes.append(train_bpe([Text(f"{tmp_path}/rows.jsonl").source()], 300, tmp_path).hash)
    assert hashes[0] == hashes[1]
    (tmp_path / "tokenizer.json").write_bytes(bpe.path.read_bytes())
    pretrained = load_pretrained(str(tmp_path))
    assert pretrained.encode(lone) == pretrained.encode(plain)
    assert [ids.tolist() for ids in pretrained.encode_many([plain, lone])] == [pretrained.encode(plain)] * 2


@pytest.mark.parametrize(
    "content", ["{}", "[]", "[" * 100_000, '{"added_tokens": 3}', '{"added_tokens": [], "model": {}}']
)
def test_a_damaged_file_of_bpe_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DamagedFile, match=r"/tokenizer\.json"):
        BPE(tmp_path / "tokenizer.json")
