"""Canaries: secrets that are planted in a training text, to measure later what a model remembers of them.

Carlini et al. 2019, arXiv:1802.08232, plant random numbers in a fixed form of words, and rank the planted number among
all others that a model might have seen there; Carlini et al. 2022, arXiv:2202.07646, measure memorization against the
number of repetitions. Names, numbers and places follow from the seed. What was planted is part of the corpus, so that
`evals=memorization` reads it from the config of a run and plants nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le, MinLen
from jaxtyping import Int

from kleiber.config import Quantity
from kleiber.data import (
    Ids,
    TextCorpus,
    TextData,
    document_starts,
    permutation,
    rewrite,
    splitmix64,
    training_file,
    without_duplicates,
)
from kleiber.types import Count, Natural, Seed, Tokenizer

NAME, SECRET = "{name}", "{secret}"
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
PARTS, SYLLABLES = 3, 2  # of a name: three words, so that near duplicates of a canary share most of their shingles
NAMES, SECRETS, PLACES, ORDER = range(4)  # what random numbers are drawn for


@dataclass(frozen=True)
class Canary:
    """A planted secret.

    before, after  the text around the secret, with the canary's name
    digits         of the secret, so that there are 10^digits candidates
    repetitions    documents of the training text that contain it, before duplicates were removed
    """

    before: str
    secret: str
    after: str
    digits: int
    repetitions: int

    @property
    def text(self) -> str:
        """The planted document."""
        return self.before + self.secret + self.after


@dataclass
class CanaryCorpus(TextCorpus):
    """Prepared text, with the secrets that were planted in its training text."""

    canaries: Sequence[Canary] = ()


@dataclass(frozen=True)
class Canaries:
    """The text of `data`, with canaries in its training text, each a document of its own.

    template     the document, with {name} and, after it, {secret}
    repetitions  numbers of times that a canary is repeated; 0: never, as a control
    count        canaries of each of these numbers
    digits       of a secret
    varied       whether each repetition ends with a number of its own, so that only near duplicates are found
    duplicates   exact or near duplicates are removed after planting (see `Deduplicated`); null: none
    seed         of names, secrets and places
    max_bytes    replaces that of `data`; null: leaves it as it is
    """

    data: TextData
    template: str = "The code of {name} is {secret}."
    repetitions: Annotated[Sequence[Natural], MinLen(1)] = (0, 1, 10, 100)
    count: Count = 10
    digits: Annotated[int, Ge(1), Le(12)] = 6
    varied: bool = False
    duplicates: Literal["exact", "near"] | None = None
    seed: Seed = 0
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> CanaryCorpus:
        """Prepares `data` and plants the canaries.

        Raises ValueError for a template without its two fields, repetitions that occur twice, data that is not one
        text, and canaries that are longer than a sample or more than half of the text.
        """
        data = self.data if self.max_bytes is None else replace(self.data, max_bytes=self.max_bytes)
        corpus = data.prepare(context, cache)
        file, canaries = training_file(corpus, "data=canaries"), self.canaries()
        documents = [encode(text, corpus.tokenizer) for canary in canaries for text in self.documents(canary)]
        longest, planted = max(map(len, documents), default=0), sum(map(len, documents))
        if longest > context:
            raise ValueError(
                f"data.template={self.template}: a canary has {longest} tokens, more than model.context={context}: "
                "set a shorter data.template"
            )
        if planted > len(file.ids):
            raise ValueError(
                f"data.repetitions={list(self.repetitions)} of data.count={self.count} canaries have {planted:,} "
                f"tokens, more than the {len(file.ids):,} of {corpus.name}: set fewer, or raise data.max_bytes"
            )
        settings = {
            "plant": [[canary.text, canary.repetitions] for canary in canaries],
            "varied": self.varied, "seed": self.seed, "remove": self.duplicates, "at": "documents",
        }  # fmt: skip

        def plant(ids: Ids) -> Ids:
            before = corpus.tokenizer.separator.before
            ends = [] if before is None else [before]
            return plant_documents(ids, documents, document_starts(ids, corpus.tokenizer), self.seed, ends)

        def remove(ids: Ids) -> Ids:
            return ids if self.duplicates is None else without_duplicates(ids, corpus.tokenizer, self.duplicates)

        config = f"{len(canaries)} canaries" + (
            "" if self.duplicates is None else f", without {self.duplicates} copies"
        )
        planted_corpus = rewrite(corpus, context, cache, config, settings, file, plant, remove)
        return CanaryCorpus(**vars(planted_corpus), canaries=tuple(canaries))

    def canaries(self) -> list[Canary]:
        """The canaries, those of the first number of repetitions first. Raises ValueError for wrong settings."""
        if self.template.count(SECRET) != 1 or NAME not in self.template.partition(SECRET)[0]:
            raise ValueError(
                f"data.template={self.template} must have {NAME} and, after it, {SECRET} once, as in "
                f"'The code of {NAME} is {SECRET}.'"
            )
        if len(set(self.repetitions)) < len(self.repetitions):
            raise ValueError(f"data.repetitions={list(self.repetitions)} must be different numbers")
        numbers = [number for number in self.repetitions for _ in range(self.count)]
        names = distinct_names(len(numbers), self.seed)
        secrets = random_numbers(len(numbers), 10**self.digits, self.seed, SECRETS)
        before, _, after = self.template.partition(SECRET)
        return [
            Canary(
                before.replace(NAME, name), f"{secret:0{self.digits}d}", after.replace(NAME, name), self.digits, count
            )
            for name, secret, count in zip(names, secrets.tolist(), numbers, strict=True)
        ]

    def documents(self, canary: Canary) -> list[str]:
        """The documents that are planted of a canary."""
        copies = range(canary.repetitions)
        return [f"{canary.text} No. {i + 1}" if self.varied else canary.text for i in copies]


def random_numbers(count: int, below: int, seed: int, purpose: int) -> Int[np.ndarray, "_"]:
    """Numbers from 0 to below - 1 that depend on the seed and on what they are drawn for."""
    state = splitmix64(np.array([seed % (1 << 64)], np.uint64))
    numbers = np.arange(count, dtype=np.uint64) + np.uint64(purpose << 40)
    return (splitmix64(numbers ^ state) % np.uint64(below)).astype(np.int64)


def distinct_names(count: int, seed: int) -> list[str]:
    """Names of three pronounceable words that no real text has, all different."""
    size = len(CONSONANTS) * len(VOWELS)
    names: dict[str, None] = {}
    drawn = 2 * count + 16  # of 70^6 names, two are hardly ever equal
    syllables = random_numbers(drawn * PARTS * SYLLABLES, size, seed, NAMES).reshape(drawn, PARTS, SYLLABLES)
    for parts in syllables.tolist():
        spelled = [[CONSONANTS[i // len(VOWELS)] + VOWELS[i % len(VOWELS)] for i in part] for part in parts]
        names.setdefault(" ".join("".join(part).capitalize() for part in spelled))
    return [*names][:count]


def encode(text: str, tokenizer: Tokenizer) -> Ids:
    """A document as token ids, between the tokens of the separator."""
    separator = tokenizer.separator
    ends = ([] if end is None else [end] for end in (separator.before, separator.after))
    before, after = ends
    return np.array([*before, *tokenizer.encode(text), *after], np.int64)


def plant_documents(
    ids: Ids, documents: Sequence[Ids], starts: Int[np.ndarray, "_"], seed: int, separator: Sequence[int] = ()
) -> Ids:
    """The ids with the documents, in random order, at random places where documents of the text begin.

    In a text that is a single document they stand anywhere, each with what separates documents behind it.

    starts     positions at which documents of the text begin
    separator  what is in front of a document
    """
    if not documents:
        return ids
    shuffled = [documents[i] for i in permutation(len(documents), seed, ORDER)]
    places = starts
    if len(starts) < 2:
        places, shuffled = np.arange(len(ids)), [np.append(document, separator) for document in shuffled]
    rounds = -(-len(documents) // len(places))  # several of them where there are fewer places
    chosen = np.concatenate([permutation(len(places), seed, PLACES, i) for i in range(rounds)])[: len(documents)]
    lengths = [len(document) for document in shuffled]
    return np.insert(np.asarray(ids, np.int64), np.repeat(places[chosen], lengths), np.concatenate(shuffled))
