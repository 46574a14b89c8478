"""The texts of a model or a person: their units, and the pieces of them that repeat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Int
from torch import Tensor

from kleiber.types import Tokenizer
from kleiber_topics.collapse.repetition import Units, ngrams

KINDS = ("greedy", "sampled", "human")  # greedy decoding, sampling at temperature 1, held-out text
MARKED = 4  # n of the repeated n-grams that a page marks
PARTS = re.compile(r"\w+|[^\w\s]")  # words and punctuation marks

Tokens = Int[Tensor, "rows _"]


@dataclass(frozen=True)
class Texts:
    """Texts of one kind.

    prompts, tokens  token ids, (samples, prompt_tokens) and (samples, length)
    units            of each text: what its n-grams are made of
    strings          the decoded texts
    """

    prompts: Tokens
    tokens: Tokens
    units: Sequence[Units]
    strings: Sequence[str]


def read_texts(tokenizer: Tokenizer, prompts: Tokens, tokens: Tokens) -> Texts:
    """The texts of these token ids."""
    return Texts(prompts, tokens, [split(tokenizer, row) for row in tokens], [decode(tokenizer, row) for row in tokens])


def counts_words(tokenizer: Tokenizer) -> bool:
    """Whether units are words: no token stands for more than a byte."""
    return bool((tokenizer.token_bytes <= 1).all())


def split(tokenizer: Tokenizer, tokens: Int[Tensor, "time"]) -> Units:
    """The units of a text: its tokens, or its words and punctuation marks if tokens are bytes.

    A word at the end of the text is left out, because it may be cut.
    """
    if not counts_words(tokenizer):
        return tokens.tolist()
    text = decode(tokenizer, tokens)
    return [part.group() for part in PARTS.finditer(text) if part.end() < len(text) or not part.group()[-1].isalnum()]


def mark_repeats(tokenizer: Tokenizer, tokens: Int[Tensor, "time"]) -> list[tuple[str, bool]]:
    """Pieces of a text in order, each with whether it is part of a 4-gram that occurred before."""
    ids = tokens.tolist()
    if counts_words(tokenizer):
        text = decode(tokenizer, tokens)
        matches = list(PARTS.finditer(text))
        flags = repeated_units([match.group() for match in matches])
        starts = [0, *(match.start() for match in matches[1:]), len(text)]
        pieces = [text[begin:end] for begin, end in pairwise(starts)] if matches else [text]
        return _join(pieces, flags or [False])
    flags = repeated_units(ids)
    runs: list[tuple[list[int], bool]] = []
    for token, flag in zip(ids, flags, strict=True):
        if runs and runs[-1][1] == flag:
            runs[-1][0].append(token)
        else:
            runs.append(([token], flag))
    return [(tokenizer.decode(run), flag) for run, flag in runs]


def _join(pieces: Sequence[str], flags: Sequence[bool]) -> list[tuple[str, bool]]:
    joined: list[tuple[str, bool]] = []
    for piece, flag in zip(pieces, flags, strict=True):
        if joined and joined[-1][1] == flag:
            joined[-1] = (joined[-1][0] + piece, flag)
        else:
            joined.append((piece, flag))
    return joined


def repeated_units(sample: Units, n: int = MARKED) -> list[bool]:
    """Whether each unit is part of an n-gram that occurred before in the sample."""
    flags, before = [False] * len(sample), set[object]()
    for start, gram in enumerate(ngrams(sample, n)):
        if gram in before:
            flags[start : start + n] = [True] * n
        before.add(gram)
    return flags


def decode(tokenizer: Tokenizer, tokens: Int[Tensor, "time"]) -> str:
    return tokenizer.decode(tokens.tolist())
