"""The base class of tokenizers, and what separates the documents of a text.

The separator of a tokenizer decides what stands in front of a document in token files, of a prompt and of a
conversation, in training, evaluation and generation alike.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Int, Integer


@dataclass(frozen=True)
class Separator:
    """The token ids around every document of a text.

    before  id in front of a document; None where documents follow one another without a token
    after   id after a document; None where `before` alone separates documents
    """

    before: int | None = None
    after: int | None = None

    @property
    def ids(self) -> list[int]:
        """`before` and `after`, without None."""
        return [i for i in (self.before, self.after) if i is not None]


class Tokenizer:
    """Encodes text as token ids, and decodes them.

    vocab_size      number of ids, padding of the vocabulary included
    eos             id of the end of a text
    mask            id of a hidden token; -1 where the vocabulary has none
    bos             id of the beginning of a text; None where the vocabulary has none
    cls             id of the token that stands for a whole text; -1 where the vocabulary has none
    hash            differs for tokenizers that encode any text differently
    token_bytes     number of bytes of text in each token; 0 for special tokens
    specials        id of each special token, by its text
    right_stripped  ids of special tokens that stand for the white space after them, too
    path            file that a run copies into its folder; None where the name is enough to load the tokenizer
    """

    name: str
    vocab_size: int
    eos: int
    mask: int
    hash: str
    token_bytes: Int[np.ndarray, "vocab"]
    bos: int | None = None
    cls: int = -1
    specials: Mapping[str, int] = MappingProxyType({})
    right_stripped: frozenset[int] = frozenset()
    path: Path | None = None
    _separator: Separator | None = None

    @property
    def separator(self) -> Separator:
        """What separates documents: the end-of-text token in front of each, unless another separator was chosen."""
        return self._separator or Separator(self.eos)

    def with_separator(self, choice: str | Sequence[str] | None) -> Tokenizer:
        """This tokenizer for None, or a copy that separates documents by the tokens of `choice`.

        choice  `auto`, as None; `none` for no tokens; `bos`, `eos` or the text of a special token, in front of every
                document; or a list of two of these, of which the second is put after every document

        Raises ValueError, which names `data.separator`, for a token that the tokenizer does not have.
        """
        if choice is None or choice == "auto":
            return self
        if choice == "none":
            tokens = []
        else:
            tokens = [choice] if isinstance(choice, str) else list(choice)
        if len(tokens) > 2:
            raise ValueError(
                f"data.separator={tokens} must have at most two tokens, the first in front of every document and the "
                "second after it"
            )
        changed = copy.copy(self)
        changed._separator = Separator(*map(self._separator_id, tokens))
        return changed

    def _separator_id(self, token: str) -> int:
        named = {"bos": self.cls if self.bos is None else self.bos, "eos": self.eos}
        ids = {name: i for name, i in {**named, **self.specials}.items() if i not in (-1, self.mask)}
        if token not in ids:
            raise ValueError(
                f"data.separator={token} must be auto, none, or a special token of the tokenizer {self.name}: "
                f"{', '.join(ids)}"
            )
        return ids[token]

    @property
    def begin(self) -> int:
        """The id in front of a prompt, a conversation and generated text, which is the one in front of a document."""
        return self.eos if self.separator.before is None else self.separator.before

    @property
    def separator_texts(self) -> list[str]:
        """The texts of the separator's tokens: a value of `data.separator` that stands for the same separator."""
        texts = {self.eos: "eos", **{i: text for text, i in self.specials.items()}}
        return [texts[i] for i in self.separator.ids]

    @property
    def data_hash(self) -> str:
        """`hash`, with the separator unless it is the end-of-text token alone; differs where token files would."""
        if self.separator == Separator(self.eos):
            return self.hash
        return "-".join([self.hash, "separator", *map(str, self.separator.ids or ["none"])])

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens, even where the text spells them."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that a model continues, after the begin token if the separator has one.

        An end-of-text token is not put in front of a prompt, as in lm-eval and transformers.
        """
        return [*([] if self.begin == self.eos else [self.begin]), *self.encode(text)]

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        """Ids of several texts."""
        return [np.asarray(self.encode(text), np.int64) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and padding are left out."""
        raise NotImplementedError
