"""The tokenizers of Hugging Face models.

Only files are read: code that comes with a tokenizer is never run. Text is encoded without the special tokens around
it, which are the tokenizer's `separator`: token files, prompts and conversations add them. A special token that a text
spells, such as `</s>` in HTML, is encoded as other text is. The library `tokenizers` does the encoding; `transformers`
is not imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from kleiber.config import hub
from kleiber.data.tokenizers import ALPHABET, CONFIG, FILE, MAX_BYTES, padded_size, replace_surrogates, token_to_bytes
from kleiber.records.files import copy_file, read_json
from kleiber.records.model_files import check_model_folder
from kleiber.records.progress import activity
from kleiber.records.regular_files import make_folder, read_bytes
from kleiber.types import Json
from kleiber.types.tokenizer import Separator, Tokenizer

MODEL = "config.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
FILES = (FILE, CONFIG, MODEL, TEMPLATE, GENERATION)  # which kleiber reads in the folder of a tokenizer
MOST_IDS = 1 << 24
VERSION = 2  # part of every hash: raise it when the ids of a text change
EOS_NAMES = ("</s>", "<|endoftext|>", "[SEP]", "<eos>", "<|end_of_text|>", "<|im_end|>")
MASK_NAMES = ("[MASK]", "<mask>", "<|mask|>")


class Pretrained(Tokenizer):
    """A tokenizer.json.

    eos          `eos_token` of the config, else its `sep_token`, else a token with a usual name
    mask         `mask_token` of the config, else a token with a usual name, else a new id after the last one
    cls          `cls_token` of the config; -1 without one
    separator    the tokens that the file puts around a text: `<s>` in front (Llama), or `[CLS]` in front and `[SEP]`
                 behind (BERT); eos where it puts none in front (GPT-2)
    vocab_size   in the folder of a model the number of rows of its embedding; mask is -1 where it has no row
    token_bytes  exact for byte-level vocabularies; for others the length of the token's text
    hash         of the content of the file
    """

    def __init__(self, folder: Path, name: str) -> None:
        from tokenizers import Tokenizer

        saved = read_bytes(folder / FILE, MAX_BYTES)
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        self.name, self.folder = name.rstrip("/").rsplit("/", 1)[-1], folder
        try:
            with self._named_panics():
                self._tokenizer = Tokenizer.from_str(saved.decode())
        except Exception as error:  # the only class that `tokenizers` raises
            raise ValueError(f"{folder / FILE} is not a valid tokenizer ({error}): download it again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self.cls = _special(vocab, config, ("cls_token",), ())
        self.num_tokens = 1 + max(vocab.values(), default=-1)
        if not 0 < self.num_tokens <= MOST_IDS:
            raise ValueError(f"{folder / FILE} has {self.num_tokens:,} token ids, which must be 1 to {MOST_IDS:,}")
        self.eos = _special(vocab, config, ("eos_token", "sep_token"), EOS_NAMES)
        self.mask = _special(vocab, config, ("mask_token",), MASK_NAMES)
        if self.eos < 0:
            raise ValueError(f"data.tokenizer={name} has no end-of-text token: set eos_token in its {CONFIG}")
        rows = _rows(folder / MODEL)
        if self.mask < 0 and (rows is None or rows > self.num_tokens):
            self.mask, self.num_tokens = self.num_tokens, self.num_tokens + 1
        self.vocab_size = padded_size(self.num_tokens) if rows is None else max(rows, self.num_tokens)
        bos = _special(vocab, config, ("bos_token",), ())
        self.bos = None if bos < 0 else bos
        self._separator = self._separator_of_file()
        special = {i for i, token in added.items() if token.special} | {*self.separator.ids, self.eos, bos, self.cls}
        self.specials = {token: i for token, i in vocab.items() if i in special}
        self.right_stripped = frozenset(i for i, token in added.items() if token.rstrip)
        self._encode_specials_as_text()
        self.hash = f"{self.name}/{VERSION}-{hashlib.sha256(saved).hexdigest()[:16]}-{self.eos}-{self.mask}"
        self.token_bytes: Int[np.ndarray, "vocab"] = np.zeros(self.vocab_size, np.int64)
        length = _byte_level if all(set(t) <= ALPHABET.keys() for t, i in vocab.items() if i not in added) else _length
        without_text = {self.eos, self.mask, *self.specials.values()}
        for token, i in vocab.items():
            self.token_bytes[i] = 0 if i in without_text else length(token)

    @contextmanager
    def _named_panics(self) -> Iterator[None]:
        """Raises ValueError where the library panics, as it does at the limits of its engine for regular expressions.

        A panic is a BaseException of a class that cannot be imported.
        """
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self.folder / FILE} cannot encode this text ({reason}): its regular expressions are too complex"
            ) from None

    def _encode_specials_as_text(self) -> None:
        """Makes the tokenizer encode the text of its special tokens as it encodes other text."""
        from tokenizers import Regex, pre_tokenizers

        self._tokenizer.encode_special_tokens = True
        # A Unigram model has them among its pieces. It cannot find them in a text that is cut after their first letter.
        pieces = [token for token, i in self.specials.items() if len(token) > 1 and i in self.encode(token)]
        if pieces:
            pattern = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in pieces)
            steps = [self._tokenizer.pre_tokenizer, pre_tokenizers.Split(Regex(pattern), "isolated")]
            self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step for step in steps if step is not None])

    def encode(self, text: str) -> list[int]:
        with self._named_panics():
            return self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids

    def _separator_of_file(self) -> Separator | None:
        """Returns the tokens that the file puts around a text; None where it puts no token in front."""
        with self._named_panics():
            encoding = self._tokenizer.encode("a", add_special_tokens=True)
        added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        ends = [i if special else None for i, special in added] or [None]
        return None if ends[0] is None else Separator(ends[0], ends[-1])

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([i for i in ids if i < self.num_tokens], skip_special_tokens=True)

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        """Returns the ids of each text; halves of characters are encoded as U+FFFD."""
        with self._named_panics():
            try:
                encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):  # a lone surrogate
                texts = [*map(replace_surrogates, texts)]
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
        raise ValueError(f"data.tokenizer={name} must be a folder with {FILE}, and {folder} has none")
    check_model_folder(folder)
    return Pretrained(folder, name)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer from its folder to the folder `target`."""
    make_folder(target)
    for name in FILES:
        if (source / name).is_file():
            copy_file(source / name, target / name)


def _download(name: str) -> Path:
    if not hub.is_name(name):
        raise ValueError(f"data.tokenizer={name} must be an existing folder or a name on the hub")
    from huggingface_hub import hf_hub_download

    online = hub.reachable()
    try:
        with activity(f"loading the tokenizer {name} from the hub"):
            hf_hub_download(name, CONFIG, local_files_only=not online)
            return Path(hf_hub_download(name, FILE, local_files_only=not online)).parent
    except Exception as error:  # many kinds, of several libraries
        if online:
            from kleiber.config.hub_failures import failure

            why = failure(error, name, "model") or str(error).splitlines()[0]
            raise ValueError(f"data.tokenizer={name} cannot be loaded: {why}") from error
        raise ValueError(
            f"data.tokenizer={name}: the hub is not reachable, and this machine has no copy; set data.tokenizer=FOLDER "
            f"to a folder with a {FILE}, KLEIBER_DATA=DIR to one with DIR/{name}, or data.tokenizer=bpe or bytes"
        ) from error


def _special(vocab: dict[str, int], config: Json, keys: tuple[str, ...], names: tuple[str, ...]) -> int:
    """Returns the id of the first special token of the config's `keys` or of the usual `names`; -1 for none."""
    values = [config.get(key) for key in keys]
    configured = [value.get("content") if isinstance(value, dict) else value for value in values]
    candidates = (name for name in (*configured, *names) if isinstance(name, str))
    return next((vocab[name] for name in candidates if name in vocab), -1)


def _rows(config: Path) -> int | None:
    """Returns the number of rows of the embedding from the config.json of a model; None where it has none."""
    rows = read_json(config).get("vocab_size") if config.is_file() else None
    if rows is not None and (type(rows) is not int or not 0 < rows <= MOST_IDS):
        raise ValueError(f"{config}: vocab_size={rows!r} must be an integer from 1 to {MOST_IDS:,}")
    return rows


def _byte_level(token: str) -> int:
    return len(token_to_bytes(token)) if set(token) <= ALPHABET.keys() else len(token.encode())


def _length(token: str) -> int:
    """Returns the bytes of a token of WordPiece (## joins) or SentencePiece (▁ is a space, <0xAB> a byte)."""
    if len(token) == 6 and token.startswith("<0x"):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode())
