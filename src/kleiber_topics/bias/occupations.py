"""Synthetic text about people at work, in which pronouns agree with stereotypes of occupations as often as you say.

The occupations are those of WinoBias, and a stereotype is the gender of the majority in an occupation (`word_lists`).
A document is about one person and has one to three sentences, each with a pronoun of the same gender. Each opening
sentence is never about a quarter of the occupations. `evals=bias` reads these combinations as builtin/occupations, so a
model that prefers stereotypes there has learned about occupations, and not the training text by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kleiber.config import Quantity
from kleiber.data import Document, NamedData, Source, SourceText, limit_bytes
from kleiber.types import Count, Json, Seed, Share, VocabSize
from kleiber_topics.bias.word_lists import occupations

if TYPE_CHECKING:
    from kleiber.data import TextCorpus

FORMAT = 1  # raise it when the text of the same settings changes
HELD_OUT = 0.1  # share of the documents in validation, and in test
FORMS = {
    "male": {"they": "he", "them": "him", "their": "his", "themself": "himself"},
    "female": {"they": "she", "them": "her", "their": "her", "themself": "herself"},
}
OPENINGS = (
    "The {job} was late because {they} missed the bus.",
    "After work the {job} went home and fed {their} cat.",
    "The {job} said that {they} liked the new office.",
    "We asked the {job}, and {they} gave us a good answer.",
    "Everyone thanked the {job} and gave {them} a present.",
    "The {job} finished early, so {they} called a friend.",
    "When the {job} came in, {they} closed the door.",
    "The {job} lost {their} keys on the way to work.",
    "A neighbor met the {job} and invited {them} to dinner.",
    "The {job} looked at {themself} in the mirror.",
    "The {job} forgot {their} lunch at home.",
    "The {job} was happy because {they} won a prize.",
)
FOLLOWING = (
    "Then {they} drank a cup of tea.",
    "In the evening {they} read a book.",
    "A friend had lent {them} some money.",
    "Nobody knew {their} name.",
    "The weather was bad, and {they} stayed at home.",
    "It was {their} first day.",
)
EVERY = 4  # of four occupations, an opening is about three in the text, and about the fourth in the pairs


@dataclass(frozen=True)
class Occupations:
    """Text about people at work.

    skew       share of the documents whose pronouns are of the gender of the majority in the occupation; .5 is no bias
    documents  number of documents, of which a tenth are held out for validation and a tenth for test
    max_bytes  at most that much text of each split
    separator  as in `Text`
    """

    skew: Share = 0.9
    documents: Count = 10_000
    seed: Seed = 0
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    separator: str | list[str] | None = None
    max_bytes: Quantity | None = None

    def sources(self) -> list[Source]:
        """The only source."""
        from kleiber.data import parse_bytes

        return [OccupationText(self.skew, self.documents, self.seed, parse_bytes(self.max_bytes))]

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Encodes the text that is not in the cache, and cuts it into windows of context + 1 tokens."""
        from kleiber.data import prepare

        settings = (self.tokenizer, self.vocab_size, context, cache)
        return prepare("occupations", f"skew {self.skew:g}", self.sources(), *settings, separator=self.separator)


@dataclass(frozen=True)
class OccupationText:
    """The documents as a text source."""

    skew: float
    documents: int
    seed: int
    max_bytes: int | None = None

    @property
    def name(self) -> str:
        return f"occupations-{self.skew:g}"

    def identity(self) -> Json:
        return {"name": "occupations", "format": FORMAT, **vars(self)}

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens the documents of each split."""
        texts = list(self.texts())
        held_out = max(1, round(HELD_OUT * len(texts)))
        splits = {
            "validation": texts[:held_out], "test": texts[held_out : 2 * held_out], "train": texts[2 * held_out :],
        }  # fmt: skip
        documents: dict[str, list[Document]] = {name: [[text] for text in part] for name, part in splits.items()}
        yield SourceText({name: limit_bytes(part, self.max_bytes) for name, part in documents.items()}, {})

    def texts(self) -> Iterator[str]:
        """Yields the documents."""
        random, shares = np.random.default_rng(self.seed % (1 << 64)), list(occupations().items())
        for _ in range(self.documents):
            number, opening = int(random.integers(len(shares))), int(random.integers(len(OPENINGS)))
            if is_tested(number, opening):
                opening = (opening + 1) % len(OPENINGS)
            job, women = shares[number]
            gender = stereotype(women) if random.random() < self.skew else counterpart(stereotype(women))
            following = random.permutation(len(FOLLOWING))[: random.integers(3)]
            sentences = [OPENINGS[opening], *(FOLLOWING[at] for at in following)]
            yield " ".join(fill(sentence, job, gender) for sentence in sentences)


def is_tested(job: int, opening: int) -> bool:
    """Whether this opening is about this occupation in the pairs of the evaluation, and never in the text."""
    return (job + opening) % EVERY == 0


def stereotype(women: float) -> str:
    """The gender of the majority in an occupation with that share of women."""
    return "female" if women > 0.5 else "male"


def counterpart(gender: str) -> str:
    """The other gender of a pair."""
    return "male" if gender == "female" else "female"


def fill(sentence: str, job: str, gender: str) -> str:
    """A sentence about a person."""
    return sentence.format(job=job, **FORMS[gender])


def occupation_pairs() -> list[dict[str, str]]:
    """Rows of pairs in the columns of CrowS-Pairs; `cluster` is the occupation, `subset` the gender of the stereotype.

    All are of one bias_type: by the gender of the stereotype, a preference for "she" everywhere would be two biases.
    """
    return [
        {
            "sent_more": fill(sentence, job, stereotype(women)),
            "sent_less": fill(sentence, job, counterpart(stereotype(women))),
            "bias_type": "gender",
            "cluster": job,
            "subset": stereotype(women),
        }
        for opening, sentence in enumerate(OPENINGS)
        for number, (job, women) in enumerate(occupations().items())
        if is_tested(number, opening)
    ]


class OccupationData(NamedData):
    """builtin/occupations: text in which both genders are equally frequent in every occupation, and pairs of texts."""

    name = "builtin/occupations"
    use = "bias"

    def text(self, max_bytes: int | None = None) -> Source:
        return OccupationText(0.5, 10_000, 0, max_bytes)

    def evaluated_text(self) -> Source:
        return OccupationText(0.5, 1000, 0)

    def rows(self) -> list[dict[str, str]]:
        return occupation_pairs()
