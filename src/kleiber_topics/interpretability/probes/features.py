"""Features of the tokens of a text that need no annotation, and random control tasks with the same classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from kleiber.types import Tokenizer
from kleiber_topics.interpretability.attention.attention import token_text

Feature = Literal["character_class", "next_class", "position_in_word"]
CLASSES = ("letter", "digit", "space", "punctuation", "other")
LONGEST_WORD = 4  # characters since the last space that are told apart


def character_class(text: str) -> int:
    """The number in `CLASSES` of the class of a character."""
    kind = unicodedata.category(text) if len(text) == 1 else "Cn"
    if text.isspace():
        return CLASSES.index("space")
    return {"L": 0, "N": 1, "Z": 2, "P": 3, "S": 3}.get(kind[0], 4)


def classes_of_tokens(texts: Sequence[str]) -> Int[np.ndarray, "time"]:
    """The class of the last character of each token; there is none for the last token, which predicts nothing."""
    return np.array([character_class(text[-1:]) for text in texts[:-1]], dtype=np.int64)


def classes_of_next(texts: Sequence[str]) -> Int[np.ndarray, "time"]:
    """The class of the first character of the next token."""
    return np.array([character_class(text[:1]) for text in texts[1:]], dtype=np.int64)


def positions_in_word(texts: Sequence[str]) -> Int[np.ndarray, "time"]:
    """The characters since the last space at the end of each token, at most `LONGEST_WORD`."""
    positions, since = [], 0
    for text in texts[:-1]:
        for character in text:
            since = 0 if character.isspace() else since + 1
        positions.append(min(since, LONGEST_WORD))
    return np.array(positions, dtype=np.int64)


FEATURES: Mapping[str, Callable[[Sequence[str]], Int[np.ndarray, "time"]]] = {
    "character_class": classes_of_tokens,
    "next_class": classes_of_next,
    "position_in_word": positions_in_word,
}


def token_texts(tokenizer: Tokenizer, ids: Int[np.ndarray, "*axes"]) -> dict[int, str]:
    """The text of each token that occurs; special tokens are a single character that is no letter."""
    return {
        int(i): token_text(tokenizer, int(i)) if tokenizer.token_bytes[i] else "\ufffd" for i in np.unique(ids).tolist()
    }


def control_labels(
    types: Int[np.ndarray, "rows"], labels: Int[np.ndarray, "rows"], seed: int
) -> Int[np.ndarray, "rows"]:
    """A random class for each type of token, drawn from the distribution of the labels.

    A probe can only learn it by memorizing the types (Hewitt & Liang 2019, arXiv:1909.03368, section 2).
    """
    random = np.random.default_rng(seed % 2**32)
    distinct, places = np.unique(types, return_inverse=True)
    return labels[random.integers(0, len(labels), len(distinct))][places]
