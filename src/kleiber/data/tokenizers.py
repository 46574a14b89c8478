"""Tokenizers of kleiber: the bytes of a text, and byte-level BPE that is trained on it.

Vocabularies are padded to a multiple of 16, so that the rows of the output layer fill vector registers. The ids of the
padding never occur. `Bytes` and `BPE` do not normalize text: decoding returns the encoded text, byte for byte.

BPE is trained on the training text by `tokenizers`; `tiktoken` encodes with it, because it gives equal ids in a third
of the CPU time. The pattern is GPT-2's with runs of at most 32 characters, so a line of a million equal letters is
encoded as fast as other text. Training is deterministic, and its tokenizer.json can be read by Hugging Face libraries.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Integer

from kleiber.data.cache import FORMAT, cached_folder
from kleiber.data.sources import Source, chunks
from kleiber.records.files import read_json, write_text
from kleiber.records.progress import Activity, activity
from kleiber.records.regular_files import DamagedFile, read_bytes
from kleiber.types import Json
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

ALIGN = 16
EOS, MASK = "<|endoftext|>", "<|mask|>"
# At most three digits a token, so long numbers are split in the same way everywhere.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,32}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,32}|\s{1,32}(?!\S)|\s{1,32}"
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
TRAIN_CHARACTERS = 100_000_000  # more text would not change the merges of a small vocabulary
MAX_BYTES = 2**26  # of a tokenizer.json, whose tokens take five times as much memory
SMALLEST = 258  # 256 bytes and two special tokens


def replace_surrogates(text: str) -> str:
    """Returns the text with `?` for each lone surrogate, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def padded_size(vocab: int) -> int:
    """Returns the size of a vocabulary with its padding: the next multiple of 16."""
    return -(-vocab // ALIGN) * ALIGN


class Bytes(Tokenizer):
    """UTF-8 bytes as tokens: ids 0 to 255 are the bytes, 256 is end of text, 257 is the mask; 272 ids with padding.

    A lone surrogate, which UTF-8 cannot represent, is read as `?`.
    """

    name = "bytes"
    eos = 256
    mask = 257
    specials: Mapping[str, int] = MappingProxyType({EOS: eos, MASK: mask})
    vocab_size = padded_size(258)
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


class BPE(Tokenizer):
    """Byte-level BPE from a tokenizer.json of `train_bpe`. The special tokens are <|endoftext|> and <|mask|>."""

    name = "bpe"

    def __init__(self, path: Path) -> None:
        import tiktoken

        saved = read_bytes(path, MAX_BYTES)
        content = read_json(path)
        try:
            specials: dict[str, int] = {token["content"]: token["id"] for token in content["added_tokens"]}
            vocab = {token: i for token, i in content["model"]["vocab"].items() if token not in specials}
            ranks = {token_to_bytes(token): i for token, i in vocab.items()}
            self.eos, self.mask, self.specials = specials[EOS], specials[MASK], specials
        except (AttributeError, KeyError, TypeError) as error:
            raise DamagedFile(path, f"kleiber did not train it ({error!r})") from None
        self.path = path
        self.hash = f"bpe/{hashlib.sha256(saved).hexdigest()[:16]}"
        self.num_tokens = len(ranks) + len(specials)
        self.vocab_size = padded_size(self.num_tokens)
        self.token_bytes: Int[np.ndarray, "vocab"] = np.zeros(self.vocab_size, np.int64)
        self.token_bytes[list(ranks.values())] = [len(token) for token in ranks]
        self._encoding = tiktoken.Encoding(
            f"kleiber-{self.hash}", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids; special tokens and padding have none."""
        return self._encoding.decode([i for i in ids if self.token_bytes[i]])

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        return [self._encode_to_array(text) for text in texts]

    def _encode_to_array(self, text: str) -> Integer[np.ndarray, "_"]:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)
        except UnicodeEncodeError:  # a lone surrogate, which `encode` replaces
            return np.array(self.encode(text), np.int32)


def train_bpe(sources: list[Source], vocab_size: int, root: Path) -> BPE:
    """Returns a BPE of at most `vocab_size` entries, fewer when the text has no more merges; from the cache or trained.

    It is trained on at most 100 million characters of the training splits. Raises ValueError for a vocab_size < 258.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"data.vocab_size={vocab_size} must be >= {SMALLEST}: 256 bytes and two special tokens")
    identities = [source.identity() for source in sources]
    identity = {"format": FORMAT, "bpe": vocab_size, "pattern": PATTERN, "sources": identities}

    def build(folder: Path) -> Json:
        """Trains the tokenizer and writes it; returns what the manifest records."""
        names = ", ".join(source.name for source in sources)
        log.info("training a BPE vocabulary of at most %s tokens on %s", f"{vocab_size:,}", names)
        label = f"training a BPE vocabulary of at most {vocab_size:,} tokens: reading text"
        with activity(label, unit="characters") as work:
            tokenizer = _train(_counted(_text(sources, root), work), vocab_size)
        write_text(folder / FILE, tokenizer.to_str(pretty=True))
        return {"tokens": tokenizer.get_vocab_size()}

    name = f"bpe{vocab_size}-{'-'.join(source.name for source in sources)}"
    folder, _ = cached_folder(root, name, identity, build)
    return BPE(folder / FILE)


def _train(text: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
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
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte has an id, even if the text lacks it
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _counted(text: Iterator[str], work: Activity) -> Iterator[str]:
    """Yields the text and counts its characters; what follows its end is the search for merges."""
    yield from work.track(text, len)
    work.label = work.label.replace("reading text", "merging pairs")


def _text(sources: list[Source], root: Path) -> Iterator[str]:
    for source in sources:
        left = TRAIN_CHARACTERS // len(sources)
        with source.open_text(root) as text:
            for chunk in itertools.chain.from_iterable(map(chunks, text.documents["train"])):
                yield replace_surrogates(chunk)
                left -= len(chunk)
                if left <= 0:
                    break


def _alphabet() -> dict[str, int]:
    """Returns the byte that each character stands for in GPT-2's vocabulary: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


ALPHABET = _alphabet()


def token_to_bytes(token: str) -> bytes:
    """Returns the bytes of a token of a byte-level vocabulary. Raises KeyError for another kind of token."""
    return bytes(ALPHABET[character] for character in token)
