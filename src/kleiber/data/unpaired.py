"""Single answers labeled as desirable or not. A table has the columns prompt, completion and label, or pairs.

Each pair of a table with the columns prompt, chosen and rejected is a desirable and an undesirable answer. Where both
answers were judged bad (`choice: both bad` of `kleiber judge`), both are undesirable.

The `tokens` of a sample contain its conversation. `counterpart` contains the same prompt with the answer to another
prompt of the split, always the same one: the log-probabilities of such mismatched answers measure how far the model has
moved from its start. In a split of one prompt it is the answer of another row. Rows without an answer are left out and
counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Int

from kleiber.data.chat import TEMPLATE, Conversation, Turn
from kleiber.data.dataset import require_columns, row_batches
from kleiber.data.order import permutation
from kleiber.data.preference import MARKS, AnswerCorpus, AnswerTable, PairRows, Pairs, ends_with_answer, parse_answer
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from datasets import Dataset

AT_ONCE = 1000  # answers that are encoded together


@dataclass
class UnpairedCorpus(AnswerCorpus):
    """Labeled answers. num_tokens counts the tokens of the answers and of their prompts, without mismatched answers."""


@dataclass(frozen=True)
class Unpaired(AnswerTable):
    """Labeled answers at `path`: columns prompt, completion (text or messages), label (true where it is desirable).

    Or pairs, with the columns prompt, chosen and rejected.

    max_bytes  at most that much text of each split
    """

    conversational: ClassVar[bool] = True  # its texts stand in the chat template, which an export then has too

    def identity(self) -> list[object]:
        return ["unpaired", TEMPLATE, "by prompt", "of another prompt", MARKS]

    def check_columns(self, table: Dataset, name: str) -> None:
        names = set(table.column_names)
        pairs = {"prompt", "chosen", "rejected"} <= names and "completion" not in names
        require_columns(table, ["prompt", *(["chosen", "rejected"] if pairs else ["completion", "label"])], name)

    def texts(self, row: Row) -> list[str]:
        return list(dict.fromkeys(turn.content for dialog, _ in labeled_answers(row) for turn in dialog))

    def prompt_texts(self, row: Row) -> list[str] | None:
        answered = [dialog for dialog, _ in labeled_answers(row) if ends_with_answer(dialog)]
        return [turn.content for turn in answered[0][:-1]] if answered else None

    def read(self, rows: Dataset) -> Iterator[Pairs]:
        """Yields each conversation, paired with its prompt and the answer to another one; and the labels."""
        answered: list[tuple[Conversation, float]] = []
        row_numbers: list[int] = []
        useless = 0
        for number, row in enumerate(row for batch in row_batches(rows) for row in batch):
            of_row = [(dialog, label) for dialog, label in labeled_answers(row) if ends_with_answer(dialog)]
            answered += of_row
            row_numbers += [number] * len(of_row)
            useless += not of_row
        dialogs, labels = [dialog for dialog, _ in answered], [label for _, label in answered]
        numbers: dict[tuple[Turn, ...], int] = {}
        prompts = [numbers.setdefault(tuple(dialog[:-1]), len(numbers)) for dialog in dialogs]
        other = mismatched_answers(np.array(prompts if len(numbers) > 1 else row_numbers, np.int64))
        if other is None:
            raise ValueError(
                f"data.path={self.path} has a split with the answers of one row alone, and each answer is compared "
                "with one of another row: add rows to that split, or raise data.max_bytes"
            )
        pairs = [(d, [*d[:-1], dialogs[j][-1]]) for d, j in zip(dialogs, other.tolist(), strict=True)]
        yield Pairs([], [], useless)
        for start in range(0, len(pairs), AT_ONCE):
            yield Pairs(pairs[start : start + AT_ONCE], labels[start : start + AT_ONCE], 0)

    def prepare(self, context: int, cache: Path | None = None) -> UnpairedCorpus:
        """Encodes the rows that are not in the cache. Raises ValueError for a split without answers."""
        encoded = self.load(cache)
        samples = encoded.samples(lambda path: UnpairedRows(path, context, encoded.tokenizer))
        identity = [TEMPLATE, context, encoded.checksums]
        return encoded.corpus(UnpairedCorpus, samples, identity, folder=encoded.root)


def mismatched_answers(owners: Int[np.ndarray, "_"]) -> Int[np.ndarray, "_"] | None:
    """Returns for each answer the number of one of another owner, always the same one; None where all have one owner.

    It is the next one of another owner in a random order, so each answer is chosen once where no owner has several.
    """
    order = permutation(len(owners), 0)
    shuffled = owners[order]
    ends = np.flatnonzero(shuffled != np.roll(shuffled, -1))  # where the next answer has another owner
    if not len(ends):
        return None if len(owners) else order
    other = np.empty_like(order)
    following = ends[np.searchsorted(ends, np.arange(len(order))) % len(ends)] + 1
    other[order] = order[following % len(order)]
    return other


def labeled_answers(row: Row) -> list[tuple[Conversation, float]]:
    """Returns the conversations of a row, each with 1 where its answer is desirable and 0 where it is not."""
    if "completion" in row:
        return [(parse_answer(row, "completion"), parse_label(row["label"]))]
    if row.get("choice") == "both bad":
        return [(parse_answer(row, side), 0.0) for side in ("left", "right")]
    return [(parse_answer(row, "chosen"), 1.0), (parse_answer(row, "rejected"), 0.0)]


def parse_label(label: object) -> float:
    """Returns 1.0 for the boolean true or the number 1, and 0.0 for false or 0.

    Raises ValueError for any other value; a string such as "true" is not accepted.
    """
    if label not in (True, False):
        raise ValueError(f"label={label!r} must be true or false")
    return float(bool(label))


class UnpairedRows(PairRows):
    """Labeled answers of one split, each followed by its mismatched answer. `labels` are 1 if desirable, else 0."""

    sides = 1  # the mismatched answer is scored separately, without gradients

    def per_sample(self, sides: Int[np.ndarray, "sides"]) -> Int[np.ndarray, "pairs"]:
        """Returns the values of the labeled conversations; `sides` also has those of mismatched ones."""
        return sides[::2]

    def describe(self, counts: Json) -> str:
        """Returns the number of answers, and what was left out or cut."""
        return (
            f"{len(self):,} answers"
            + (f"; {counts['useless']:,} rows without an answer left out" if counts["useless"] else "")
            + (f"; {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f"; {counts['share']:.1%} are desirable" if counts["share"] is not None else "")
        )

    def explain_empty(self, split: str) -> str:
        return f"the {split} split has no answer"
