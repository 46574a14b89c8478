"""Tokenizers whose tokens are sequences of bytes: the bytes themselves, and byte-level BPE.

Vocabularies are padded to a multiple of 16, so that the rows of the head fill vector registers; the ids of the padding
stand for nothing and never occur. Text is not normalized: decoding returns the encoded text, byte for byte.

BPE is trained on the training text by `tokenizers` and encoded by `tiktoken`, which gives equal ids in a third of the
CPU time. The pattern is GPT-2's with runs of at most 32 characters, so that a line of a million equal letters costs no
more than a sentence. Ids are deterministic; the result is a tokenizer.json that any Hugging Face library reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from kleiber.data.cache import FORMAT, Source, cached
from kleiber.types.contracts import Tokenizer

ALIGN = 16
EOS, MASK = "<|endoftext|>", "<|mask|>"
CHUNK = 1 << 16  # characters encoded in one go


def padded(vocab: int) -> int:
    """The next multiple of 16."""
    return -(-vocab // ALIGN) * ALIGN


class Bytes(Tokenizer):
    """UTF-8 bytes: ids 0 to 255 are the bytes, 256 is end of text, 257 is the mask; 272 with padding.

    A lone surrogate, which UTF-8 has no form for, is read as `?`.
    """

    name = "bytes"
    eos = 256
    mask = 257
    vocab_size = padded(258)
    hash = "bytes/1"

    def __init__(self) -> None:
        self.token_bytes: Int[np.ndarray, "vocab"] = np.zeros(self.vocab_size, np.int64)
        self.token_bytes[:256] = 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        return [np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for text in texts]


def chunks(pieces: Iterable[str], size: int = CHUNK) -> Iterator[str]:
    """The same text in chunks of about `size` characters: memory stays bounded however long a line or a document is.

    A cut falls before white space that follows something else. Every GPT-2-like pattern begins a new word there, so ids
    are those of the whole text; only where 65,536 characters hold no such place does a cut fall within a word.
    """
    held = ""
    for piece in pieces:
        for at in range(0, len(piece), size):
            held += piece[at : at + size]
            while len(held) > size:
                cut = _cut(held, size)
                yield held[:cut]
                held = held[cut:]
    if held:
        yield held


def _cut(text: str, size: int) -> int:
    for at in range(size, 0, -1):
        if text[at].isspace() and not text[at - 1].isspace():
            return at
    return size


log = logging.getLogger(__name__)

# Three digits at most a token: long numbers are spelled alike wherever they stand.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,32}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,32}|\s{1,32}(?!\S)|\s{1,32}"
FILE = "tokenizer.json"
TRAIN_BYTES = 100_000_000  # more text than this changes no merge that a small vocabulary has room for
SMALLEST = 258  # 256 bytes and two specials


class BPE(Tokenizer):
    """Byte-level BPE out of a tokenizer.json written by `trained`. The specials are <|endoftext|> and <|mask|>."""

    name = "bpe"

    def __init__(self, path: Path) -> None:
        import tiktoken

        saved = path.read_bytes()
        content = json.loads(saved)
        specials = {token["content"]: token["id"] for token in content["added_tokens"]}
        ranks = {as_bytes(token): i for token, i in content["model"]["vocab"].items() if token not in specials}
        self.path = path
        self.hash = f"bpe/{hashlib.sha256(saved).hexdigest()[:16]}"
        self.eos, self.mask = specials[EOS], specials[MASK]
        self.num_tokens = len(ranks) + len(specials)
        self.vocab_size = padded(self.num_tokens)
        self.token_bytes: Int[np.ndarray, "vocab"] = np.zeros(self.vocab_size, np.int64)
        self.token_bytes[list(ranks.values())] = [len(token) for token in ranks]
        self._encoding = tiktoken.Encoding(
            f"kleiber-{self.hash}", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; specials and padding stand for nothing."""
        return self._encoding.decode([i for i in ids if self.token_bytes[i]])

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        threads = len(os.sched_getaffinity(0))
        return [np.asarray(ids, np.int64) for ids in self._encoding.encode_ordinary_batch(texts, num_threads=threads)]


def trained(sources: list[Source], vocab_size: int, root: Path) -> BPE:
    """BPE of at most `vocab_size` entries (fewer when the text has no more merges), from the cache or trained now.

    It sees the training split alone, at most 100 MB of it. Raises ValueError for fewer than 258 entries.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"data.vocab_size={vocab_size}: bpe needs at least {SMALLEST} (the bytes and two specials)")
    identities = [source.identity() for source in sources]
    identity = {"format": FORMAT, "bpe": vocab_size, "pattern": PATTERN, "sources": identities}

    def build(folder: Path) -> dict[str, Any]:
        log.info("training a BPE vocabulary of %d on %s", vocab_size, ", ".join(source.name for source in sources))
        tokenizer = _train(_text(sources, root), vocab_size)
        tokenizer.save(str(folder / FILE))
        return {"tokens": tokenizer.get_vocab_size()}

    name = f"bpe{vocab_size}-{'-'.join(source.name for source in sources)}"
    folder, _ = cached(root, name, identity, build)
    return BPE(folder / FILE)


def _train(text: Iterator[str], vocab_size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte has an id, whatever the text holds
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _text(sources: list[Source], root: Path) -> Iterator[str]:
    for source in sources:
        left = TRAIN_BYTES // len(sources)
        with source.reading(root) as text:
            for document in text.documents["train"]:
                for chunk in chunks(document):
                    yield chunk
                    left -= len(chunk)
                if left <= 0:
                    break


def _alphabet() -> dict[str, int]:
    """GPT-2's way to write a byte as a visible character, inverted: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


ALPHABET = _alphabet()


def as_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for. Raises KeyError for a token of another kind."""
    return bytes(ALPHABET[character] for character in token)
