"""Tokenizers: the bytes of a text, byte-level BPE that is trained on it, and those of Hugging Face models.

Vocabularies are padded to a multiple of 16, so that the rows of the output layer fill vector registers. The ids of the
padding never occur. `Bytes` and `BPE` do not normalize text: decoding returns the encoded text, byte for byte.

BPE is trained on the training text by `tokenizers`; `tiktoken` encodes with it, because it gives equal ids in a third
of the CPU time. The pattern is GPT-2's with runs of at most 32 characters, so a line of a million equal letters is
encoded as fast as other text. Training is deterministic, and its tokenizer.json can be read by Hugging Face libraries.

Of a `Pretrained` tokenizer only files are read: code that comes with it is never run. Text is encoded without the
special tokens that a model expects around it, because token files separate documents themselves. The library
`tokenizers` does the encoding; `transformers` is not imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Integer

from kleiber.config import hub
from kleiber.data.cache import FORMAT, Source, cached_folder, chunks
from kleiber.types import Json
from kleiber.types.contracts import Tokenizer

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

ALIGN = 16
EOS, MASK = "<|endoftext|>", "<|mask|>"
# At most three digits a token, so long numbers are split in the same way everywhere.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,32}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,32}|\s{1,32}(?!\S)|\s{1,32}"
FILE, CONFIG, MODEL = "tokenizer.json", "tokenizer_config.json", "config.json"
TRAIN_CHARACTERS = 100_000_000  # more text would not change the merges of a small vocabulary
SMALLEST = 258  # 256 bytes and two special tokens
EOS_NAMES = ("</s>", "<|endoftext|>", "[SEP]", "<eos>", "<|end_of_text|>", "<|im_end|>")
MASK_NAMES = ("[MASK]", "<mask>", "<|mask|>")


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

        saved = path.read_bytes()
        content = json.loads(saved)
        specials = {token["content"]: token["id"] for token in content["added_tokens"]}
        ranks = {token_to_bytes(token): i for token, i in content["model"]["vocab"].items() if token not in specials}
        self.path = path
        self.hash = f"bpe/{hashlib.sha256(saved).hexdigest()[:16]}"
        self.eos, self.mask = specials[EOS], specials[MASK]
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
        threads = len(os.sched_getaffinity(0))
        return [np.asarray(ids, np.int64) for ids in self._encoding.encode_ordinary_batch(texts, num_threads=threads)]


def train_bpe(sources: list[Source], vocab_size: int, root: Path) -> BPE:
    """Returns a BPE of at most `vocab_size` entries, fewer when the text has no more merges; from the cache or trained.

    It is trained on at most 100 million characters of the training splits. Raises ValueError for a vocab_size < 258.
    """
    if vocab_size < SMALLEST:
        raise ValueError(f"data.vocab_size={vocab_size} must be >= {SMALLEST}: 256 bytes and two special tokens")
    identities = [source.identity() for source in sources]
    identity = {"format": FORMAT, "bpe": vocab_size, "pattern": PATTERN, "sources": identities}

    def build(folder: Path) -> Json:
        log.info("training a BPE vocabulary of %d on %s", vocab_size, ", ".join(source.name for source in sources))
        tokenizer = _train(_text(sources, root), vocab_size)
        tokenizer.save(str(folder / FILE))
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


def _text(sources: list[Source], root: Path) -> Iterator[str]:
    for source in sources:
        left = TRAIN_CHARACTERS // len(sources)
        with source.open_text(root) as text:
            for document in text.documents["train"]:
                for chunk in chunks(document):
                    yield chunk
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


class Pretrained(Tokenizer):
    """A tokenizer.json.

    eos          `eos_token` of the config, else its `sep_token`, else a token with a usual name
    mask         `mask_token` of the config, else a token with a usual name, else a new id after the last one
    cls          `cls_token` of the config; -1 without one
    vocab_size   in the folder of a model the number of rows of its embedding; mask is -1 where it has no row
    token_bytes  exact for byte-level vocabularies; for others the length of the token's text
    hash         of the content of the file
    """

    def __init__(self, folder: Path, name: str) -> None:
        from tokenizers import Tokenizer

        saved = (folder / FILE).read_bytes()
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else {}
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG} is not valid JSON ({error}): download the tokenizer again") from None
        self.name = name.rstrip("/").rsplit("/", 1)[-1]
        try:
            self._tokenizer = Tokenizer.from_str(saved.decode())
        except Exception as error:  # the only class that `tokenizers` raises
            raise ValueError(f"{folder / FILE} is not a valid tokenizer ({error}): download it again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        self.cls = _special(vocab, config, ("cls_token",), ())
        self.num_tokens = 1 + max(vocab.values())
        self.eos = _special(vocab, config, ("eos_token", "sep_token"), EOS_NAMES)
        self.mask = _special(vocab, config, ("mask_token",), MASK_NAMES)
        if self.eos < 0:
            raise ValueError(f"data.tokenizer={name} has no end-of-text token: set eos_token in its {CONFIG}")
        model = folder / MODEL
        rows = json.loads(model.read_text(encoding="utf-8")).get("vocab_size") if model.is_file() else None
        if self.mask < 0 and (rows is None or rows > self.num_tokens):
            self.mask, self.num_tokens = self.num_tokens, self.num_tokens + 1
        self.vocab_size = padded_size(self.num_tokens) if rows is None else max(rows, self.num_tokens)
        self.folder = folder
        bos = _special(vocab, config, ("bos_token",), ())
        self.bos = None if bos < 0 else bos
        self.hash = f"{self.name}/{hashlib.sha256(saved).hexdigest()[:16]}-{self.eos}-{self.mask}"
        self.token_bytes: Int[np.ndarray, "vocab"] = np.zeros(self.vocab_size, np.int64)
        length = _byte_level if all(set(t) <= ALPHABET.keys() for t in vocab if t not in added) else _length
        for token, i in vocab.items():
            self.token_bytes[i] = 0 if i in (self.eos, self.mask) else length(token)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_for_model(self, text: str) -> list[int]:
        """Returns ids with the special tokens that the tokenizer's own files put around a text."""
        return self._tokenizer.encode(text, add_special_tokens=True).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([i for i in ids if i < self.num_tokens], skip_special_tokens=True)

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in encoded]


def load_pretrained(name: str) -> Pretrained:
    """Returns the tokenizer in a folder, in a local copy below $KLEIBER_DATA, or on the hub.

    Raises ValueError if there is no such tokenizer; within ten seconds if the hub is not reachable.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        copy = hub.local_copy(name) if hub.is_name(name) else None
        folder = copy or _download(name)
    if not (folder / FILE).is_file():
        raise ValueError(f"data.tokenizer={name}: {folder} has no {FILE}")
    return Pretrained(folder, name)


def _download(name: str) -> Path:
    if not hub.is_name(name):
        raise ValueError(f"data.tokenizer={name} is not an existing folder, and not a name on the hub")
    from huggingface_hub import hf_hub_download

    online = hub.reachable()
    try:
        hf_hub_download(name, CONFIG, local_files_only=not online)
        return Path(hf_hub_download(name, FILE, local_files_only=not online)).parent
    except Exception as error:  # many kinds, of several libraries
        if online:
            raise ValueError(f"data.tokenizer={name} cannot be loaded: {str(error).splitlines()[0]}") from error
        raise ValueError(
            f"data.tokenizer={name}: the hub is not reachable, and this machine has no copy; set data.tokenizer=FOLDER "
            f"to a folder with a {FILE}, KLEIBER_DATA=DIR to one with DIR/{name}, or data.tokenizer=bpe or bytes"
        ) from error


def _special(vocab: dict[str, int], config: Json, keys: tuple[str, ...], names: tuple[str, ...]) -> int:
    """Returns the id of the first special token of the config's `keys` or of the usual `names`; -1 for none."""
    values = [config.get(key) for key in keys]
    configured = [value.get("content") if isinstance(value, dict) else value for value in values]
    return next((vocab[name] for name in (*configured, *names) if name in vocab), -1)


def _byte_level(token: str) -> int:
    return len(token_to_bytes(token)) if set(token) <= ALPHABET.keys() else len(token.encode())


def _length(token: str) -> int:
    """Returns the bytes of a token of WordPiece (## joins) or SentencePiece (▁ is a space, <0xAB> a byte)."""
    if len(token) == 6 and token.startswith("<0x"):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())
