"""Bytes and byte-level BPE are exact, count the bytes of every token, and are the same when trained again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from small_run import REPOSITORY

from kleiber.data.sources.text import Text
from kleiber.data.tokenizers.byte_level import BPE, Bytes, chunks, trained

ODD = [
    "hé 🙂 你好",
    "",
    " ",
    "\n\n  \t x",
    "x" * 70,
    "don't  we'll\r\n12345 6",
    "<|endoftext|>",
    "def f(x):\n        return x**2\n",
]


def noise(count: int) -> list[str]:
    pick = random.Random(0)
    pools = ["abc XYZ", " \n\t", "0123456789", "!?#[]{}'\"", "éüßñ", "你好世界", "🙂🚀", "\u200b\u0301\ufeff"]
    return ["".join(pick.choice(pick.choice(pools)) for _ in range(pick.randint(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPE:
    source = Text(str(REPOSITORY / "tests/data/tiny.txt")).source()
    return trained([source], 400, tmp_path_factory.mktemp("bpe"))


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


def test_chunks_are_the_text_and_their_ids_those_of_the_whole(bpe: BPE, tiny: str) -> None:
    text = Path(tiny).read_text()
    pieces = list(chunks([text[:7000], text[7000:]], size=1000))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1000
    assert np.concatenate(bpe.encode_many(pieces)).tolist() == bpe.encode(text)
    assert [len(piece) for piece in chunks(["x" * 2500], size=1000)] == [1000, 1000, 500]


def test_bpe_is_the_same_when_trained_again(bpe: BPE, tmp_path: Path, tiny: str) -> None:
    again = trained([Text(tiny).source()], 400, tmp_path)
    assert again.hash == bpe.hash
    assert trained([Text(tiny).source()], 300, tmp_path).hash != bpe.hash


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path: Path, tiny: str) -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size=100"):
        trained([Text(tiny).source()], 100, tmp_path)
