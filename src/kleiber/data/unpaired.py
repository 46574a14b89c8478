"""Single answers with a verdict, good or bad: prompt, completion, label. No prompt has to be answered twice.

A sample's `tokens` hold its conversation, `against` the same prompt with the answer of another row, always the same
one: what a model says of such answers tells how far it has gone from where it began, on no answer in particular. Rows
without an answer are left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from kleiber.data.chat import Conversation
from kleiber.data.corpus import as_bytes
from kleiber.data.instruct import TEMPLATE
from kleiber.data.preference import AnsweredCorpus, Answers, PairRows, answered, asked, side
from kleiber.data.sampler import permutation
from kleiber.data.sources.open import locate
from kleiber.data.sources.table import Row, Table, must_have, table_name

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class UnpairedCorpus(AnsweredCorpus):
    """Answers with verdicts. num_tokens are those of the answers that were judged, with their prompts."""

    def judged(self) -> dict[str, JudgedRows]:
        return self.rows()


@dataclass(frozen=True)
class Unpaired(Answers):
    """Judged answers at `path`: columns prompt, completion (text or messages), label (true where it is desirable)."""

    def table(self) -> Table:
        """The rows, and the columns that must be in them."""
        place = locate(self.path)

        def checked(table: Dataset) -> None:
            wanted = ("prompt", "completion", "label")
            must_have(table, [("a judged answer needs", column) for column in wanted], place.name)

        def texts(row: Row) -> list[str]:
            verdict(row["label"])
            return [turn.content for turn in side(row, "completion")]

        name = self.name or table_name(place, self.config)
        meaning, limit = ["unpaired", TEMPLATE, "by prompt"], as_bytes(self.max_bytes)
        prompt = partial(asked, name="completion")
        return Table(place, self.config, name, texts, checked, meaning, limit, prompt)

    def read(self, rows: list[Row]) -> tuple[list[tuple[Conversation, Conversation]], list[float]]:
        """Each answer beside that of another row, and its verdict."""
        judged = [(side(row, "completion"), verdict(row["label"])) for row in rows]
        good = [(dialog, label) for dialog, label in judged if answered(dialog)]
        # In a random order, since neighbours are often answers to one prompt.
        order = permutation(len(good), 0)
        other = np.empty_like(order)
        other[order] = np.roll(order, -1)
        sides = [(dialog, [*dialog[:-1], good[int(j)][0][-1]]) for (dialog, _), j in zip(good, other, strict=True)]
        return sides, [label for _, label in good]

    def prepare(self, context: int, cache: Path | None = None) -> UnpairedCorpus:
        return UnpairedCorpus(**self.parts(context, cache, JudgedRows))


def verdict(label: Any) -> float:
    """1 for an answer that is desirable, 0 for one that is not."""
    if label not in (True, False):  # 1 and 0 too
        raise ValueError(f"label={label!r} is no verdict on an answer: write true or false")
    return float(label)


class JudgedRows(PairRows):
    """Judged answers of one split, each before the mismatched one. `labels` are 1 where an answer is desirable."""

    sides = 1  # the mismatched one is read without gradients, at another time
    sample_name = "answer with a verdict"

    def counted(self, sides: Int[np.ndarray, "sides"]) -> Int[np.ndarray, "pairs"]:
        return sides[::2]

    def described(self, count: dict[str, Any]) -> str:
        """A line for the log: the number of answers, and what was left out or cut."""
        return (
            f"{len(self):,} answers"
            + (f"; {count['useless']:,} rows without an answer left out" if count["useless"] else "")
            + (f"; {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f"; {count['share']:.1%} are desirable" if count["share"] is not None else "")
        )
