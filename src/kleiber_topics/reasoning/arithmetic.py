"""Synthetic addition problems, with or without worked steps, to measure what a chain of thought is worth.

A problem is `347+285=`, and its answer `632`. With steps the answer first adds the columns from the right, each with
the carry of the column before it (a scratchpad: Nye et al. 2021, arXiv:2112.00114), and ends in the sum:

    347+285=7+5=12 4+8+1=13 3+2+1=6 632

Only answers are targets. A tenth of all problems is held out, whatever the order of their terms, and so never trained
on. The held-out problems are the same with and without steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le, MinLen
from jaxtyping import Bool, Int

from kleiber.config import Quantity
from kleiber.data import (
    Bytes,
    Conversations,
    HeldOutRows,
    InstructCorpus,
    PackedConversations,
    TokenRows,
    digest,
    parse_bytes,
    splitmix64,
)
from kleiber.types import Count, HeldOut, Seed

log = logging.getLogger(__name__)

HELD_OUT_OF = 10  # one problem of this many is held out
MOST_DIGITS = 18  # of terms, which are 64-bit integers

Terms = Int[np.ndarray, "problems terms"]  # a problem in each row


@dataclass(frozen=True)
class Arithmetic:
    """Settings of addition problems, as bytes.

    digits    numbers of digits of the terms; each is as frequent, and a data set of its own in validation (digits3)
    terms     numbers that are added
    steps     whether answers show the columns before the sum
    problems  training problems of one epoch
    held_out  most validation problems for each number of digits
    max_bytes of the training text; null: no limit
    pack      true: as many problems to a row as fit; false: one, with padding
    verifier  name of the reward that verifies answers (objective.reward)
    """

    digits: Annotated[Sequence[Annotated[int, Ge(1), Le(MOST_DIGITS)]], MinLen(1)] = (1, 2, 3, 4)
    terms: Annotated[int, Ge(2), Le(9)] = 2
    steps: bool = False
    problems: Count = 100_000
    held_out: Count = 200
    seed: Seed = 0
    max_bytes: Quantity | None = None
    pack: bool = True
    verifier: str = "arithmetic"

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Computes the problems, without numbers of digits whose problems may exceed the context.

        Raises ValueError where none of them fits.
        """
        kinds = self.fitting(context)
        held_out = {f"digits{n}": self.encode(self.draw_held_out(n), context) for n in kinds}
        validation: dict[str, HeldOut] = {name: HeldOutRows(rows) for name, rows in held_out.items()}
        for digits, rows in zip(kinds, validation.values(), strict=True):
            rows.label = f"sums of {digits} digits"
        rows = self.encode(self.draw_training(kinds), context, parse_bytes(self.max_bytes))
        train = PackedConversations(rows) if self.pack else rows
        settings = [kinds, self.terms, self.steps, self.problems, self.held_out, self.seed, self.max_bytes]
        return InstructCorpus(
            name="arithmetic",
            config=f"{self.terms} terms" + (", steps" if self.steps else ""),
            hash=digest(["arithmetic", 1, *settings, *(() if self.pack else ("unpacked",))]),
            tokenizer=Bytes(),
            train=train,
            validation=validation,
            num_tokens=train.num_tokens,
            num_bytes=train.num_bytes,
            num_answers=rows.num_answers,
            verifier=self.verifier,
        )

    def fitting(self, context: int) -> list[int]:
        """The numbers of digits whose longest problem fits a row; the others are logged."""
        lengths = {n: self.longest(n) for n in sorted(set(self.digits))}
        kinds = [n for n, length in lengths.items() if length <= context + 1]
        if not kinds:
            raise ValueError(
                f"data.digits={list(self.digits)}: problems have up to {min(lengths.values())} tokens, more than "
                f"model.context={context} reads: set model.context={min(lengths.values()) - 1} or more"
            )
        if left_out := [n for n in lengths if n not in kinds]:
            log.warning("data.digits=%s left out: their problems exceed model.context=%d", left_out, context)
        return kinds

    def longest(self, digits: int) -> int:
        """Tokens of the longest problem with terms of this many digits."""
        terms = [10**digits - 1] * self.terms
        return len(question_text(terms)) + len(answer_text(terms, self.steps)) + 2

    def draw_training(self, kinds: Sequence[int]) -> list[list[int]]:
        """The terms of the training problems, with as many of each number of digits, in random order."""
        random = np.random.default_rng([self.seed % 2**32, 0])
        shares = np.array_split(np.arange(self.problems), len(kinds))
        parts: list[list[int]] = []
        for digits, share in zip(kinds, shares, strict=True):
            drawn: list[list[int]] = []
            while len(drawn) < len(share):
                terms = draw_terms(random, len(share), self.terms, digits)
                drawn += terms[~is_held_out(terms)].tolist()
            parts += drawn[: len(share)]
        return [parts[i] for i in random.permutation(len(parts))]

    def draw_held_out(self, digits: int) -> list[list[int]]:
        """The terms of different held-out problems with terms of this many digits, at most `held_out`."""
        random = np.random.default_rng([self.seed % 2**32, digits])
        terms = draw_terms(random, 2 * HELD_OUT_OF * self.held_out + 1000, self.terms, digits)
        distinct = dict.fromkeys(map(tuple, terms[is_held_out(terms)].tolist()))
        return [list(numbers) for numbers in list(distinct)[: self.held_out]]

    def encode(self, problems: Sequence[Sequence[int]], context: int, max_bytes: int | None = None) -> Conversations:
        """Encodes problems: the end-of-text id, the question, the answer, and that id again."""
        ids: list[int] = []
        marks: list[int] = []
        starts = [0]
        for terms in problems:
            question, answer = question_text(terms).encode(), answer_text(terms, self.steps).encode()
            if max_bytes is not None and ids and len(ids) + len(question) + len(answer) > max_bytes:
                break
            ids += [Bytes.eos, *question, *answer, Bytes.eos]
            marks += [0] * (1 + len(question)) + [1] * (len(answer) + 1)
            starts.append(len(ids))
        bounds = np.array(starts)
        rows = TokenRows(np.array(ids, np.uint16), bounds)
        return Conversations(rows, TokenRows(np.array(marks, np.uint8), bounds), context, Bytes())


def draw_terms(random: np.random.Generator, problems: int, terms: int, digits: int) -> Terms:
    """Random numbers of exactly `digits` digits, of which 0 has one."""
    low = 0 if digits == 1 else 10 ** (digits - 1)
    return random.integers(low, 10**digits, (problems, terms))


def is_held_out(terms: Terms) -> Bool[np.ndarray, "_"]:
    """Whether each problem is never trained on, which depends neither on the order of its terms nor on a seed."""
    state = np.zeros(len(terms), np.uint64)
    for column in np.sort(terms, axis=1).T:
        state = splitmix64(state ^ column.astype(np.uint64))
    return state % np.uint64(HELD_OUT_OF) == 0


def question_text(terms: Sequence[int]) -> str:
    return "+".join(map(str, terms)) + "="


def answer_text(terms: Sequence[int], steps: bool) -> str:
    """The sum, after the columns where `steps` are shown."""
    return " ".join([*(columns(terms) if steps else ()), str(sum(terms))])


def columns(terms: Sequence[int]) -> Iterator[str]:
    """Yields the sum of the digits of each column, from the right, each after the first with the carry."""
    texts, carry = [str(term)[::-1] for term in terms], 0
    for place in range(max(map(len, texts))):
        parts = [int(text[place]) for text in texts if place < len(text)] + [carry] * (place > 0)
        total = sum(parts)
        yield f"{'+'.join(map(str, parts))}={total}"
        carry = total // 10
