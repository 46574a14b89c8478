"""Text to ids and back: bytes here, BPE in `bpe`, any Hugging Face tokenizer in `pretrained`.

Vocabularies are padded to a multiple of 16, so that the rows of the head fill vector registers; the ids of the padding
stand for nothing and never occur. Nothing here normalises text: what goes in comes out, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int, Integer

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
