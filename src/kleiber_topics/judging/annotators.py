"""Simulated annotators: what a person with a planted taste, noise and biases would choose between two answers.

Their taste is a utility, a rule that gives every answer a number. So what a model learns from judgments can be compared
with what the judges wanted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge, Le, MinLen

from kleiber.types import Natural, NonNegative, Seed
from kleiber_topics.judging.judgments import Choice, Comparison, Judgment

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
BYTES = 100  # of length that a bias of 1 weighs like one unit of utility


@runtime_checkable
class Utility(Protocol):
    """A rule that gives an answer a number; annotators prefer larger ones."""

    def utility(self, answer: str) -> float:
        """The number of an answer."""
        ...


@dataclass(frozen=True)
class WordShare:
    """Words of a class per 10 words of an answer: it may be nicer to read about friends and play than not.

    words  the class, in lower case
    """

    words: Annotated[Sequence[str], MinLen(1)]

    def utility(self, answer: str) -> float:
        """Occurrences of the words per 10 words; 0 for an answer without words."""
        tokens = [token.lower() for token in WORD.findall(answer)]
        return 10 * sum(token in set(self.words) for token in tokens) / len(tokens) if tokens else 0.0


@dataclass(frozen=True)
class Variety:
    """Different n-grams of words over all n-grams, in tenths: repetition is dull.

    n  words of an n-gram
    """

    n: Annotated[int, Ge(1), Le(8)] = 2

    def utility(self, answer: str) -> float:
        """10 times the share of different n-grams; 0 for an answer without any."""
        tokens = [token.lower() for token in WORD.findall(answer)]
        grams = [tuple(tokens[i : i + self.n]) for i in range(len(tokens) - self.n + 1)]
        return 10 * len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Annotator:
    """Chooses the answer of greater perceived utility, and says the opposite with probability `noise`.

    The perceived difference, left less right, is that of the utilities, plus `longer` for each 100 bytes that the left
    answer is longer, plus `first`, plus `disagreement` times a normal number that is this annotator's alone (Thurstone
    1927). A difference of 0 is a tie, which noise does not change.

    number  of the annotator: two numbers differ in their noise
    seed    of all random numbers; a choice depends on it, the number and the item alone
    """

    taste: Utility
    noise: Annotated[float, Ge(0), Le(1)] = 0.0
    longer: float = 0.0
    first: float = 0.0
    disagreement: NonNegative = 0.0
    number: Natural = 0
    seed: Seed = 0

    def judge(self, comparison: Comparison) -> Judgment:
        """The judgment of a comparison."""
        choice = self.choose(comparison.item, comparison.left, comparison.right)
        return Judgment(comparison, choice, f"simulated-{self.number}")

    def choose(self, item: int, left: str, right: str) -> Choice:
        """The choice between two answers to the prompt of a number."""
        random = np.random.default_rng([abs(self.seed), self.number, item])
        flip, own_view = random.random() < self.noise, random.standard_normal()
        difference = self.taste.utility(left) - self.taste.utility(right) + self.first
        difference += self.longer * (len(left.encode()) - len(right.encode())) / BYTES
        difference += self.disagreement * own_view
        if difference == 0:
            return "tie"
        return "left" if (difference > 0) != flip else "right"
