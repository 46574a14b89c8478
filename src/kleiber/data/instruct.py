"""Conversations to learn answers from: instructions, questions, and chats of many turns. A sample is a row of a table.

Several samples share a row of the batch, each in its own segment, and attention stays within a segment. A sample that
exceeds model.context is cut at its end. A sample without an answer, or whose answers are all cut off, is left out and
counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Int, Integer

from kleiber.data.batches import pack_rows, pad, sample_numbers, text_bytes
from kleiber.data.chat import (
    FORMS,
    TEMPLATE,
    Conversation,
    encode_conversations,
    has_conversations,
    is_answer,
    parse_row,
)
from kleiber.data.corpus import EncodedSplit, TableRows, TextCorpus
from kleiber.data.dataset import require_columns, row_batches
from kleiber.data.table import TableData
from kleiber.data.token_files import TokenRows, id_dtype, read_rows
from kleiber.types import Json, Row
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class InstructCorpus(TextCorpus):
    """Conversations. num_tokens counts all tokens, prompts included; num_answers counts the targets.

    verifier  name of the reward that verifies answers (objective.reward=verifier); None where the data names none
    """

    num_answers: int = 0
    verifier: str | None = None


@dataclass(frozen=True)
class Instruct(TableData):
    """Conversations at `path`: in the columns of one of the forms in `kleiber.data.chat.FORMS`.

    prompt, response  the two columns, where they have other names
    pack              true: as many samples to a row as fit; false: one sample to a row, with padding
    max_bytes         at most that much text of each split
    """

    conversational: ClassVar[bool] = True  # its texts stand in the chat template, which an export then has too

    prompt: str | None = None
    response: str | None = None
    pack: bool = True

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise ValueError(f"data.prompt={self.prompt} and data.response={self.response}: set both columns or none")

    def identity(self) -> list[object]:
        return ["instruct", TEMPLATE, self.prompt, self.response, "by prompt"]

    def check_columns(self, table: Dataset, name: str) -> None:
        """Raises ValueError for a table without columns of conversations."""
        if self.prompt is not None and self.response is not None:
            require_columns(table, [self.prompt], name, "data.prompt")
            require_columns(table, [self.response], name, "data.response")
        elif not has_conversations(table.column_names):
            raise ValueError(
                f"data.path={name} has the columns {', '.join(table.column_names)}; conversations are read from "
                f"{FORMS}; for other columns set data.prompt=COLUMN data.response=COLUMN"
            )

    def texts(self, row: Row) -> list[str]:
        return [turn.content for turn in self.conversation(row)]

    def prompt_texts(self, row: Row) -> list[str] | None:
        """Returns the texts of the turns before the last answer; None for a row without an answer."""
        dialog = self.conversation(row)
        answers = [i for i, turn in enumerate(dialog) if is_answer(turn)]
        return [turn.content for turn in dialog[: answers[-1]]] if answers else None

    def conversation(self, row: Row) -> Conversation:
        """Returns the turns of a row. Raises ValueError for a row that is not a conversation."""
        if self.prompt is None or self.response is None:
            return parse_row(row)
        return parse_row({"prompt": row[self.prompt], "response": row[self.response]})

    def encode_split(self, rows: Dataset, tokenizer: Tokenizer) -> EncodedSplit:
        """Encodes the conversations that have an answer, with 1 on the tokens of answers."""
        dtype, unanswered = id_dtype(tokenizer.vocab_size), 0
        ids: list[Integer[np.ndarray, "_"]] = []
        marks: list[Integer[np.ndarray, "_"]] = []
        for batch in row_batches(rows):
            dialogs = [self.conversation(row) for row in batch]
            answered = [d for d in dialogs if any(map(is_answer, d))]
            unanswered += len(dialogs) - len(answered)
            for dialog in encode_conversations(answered, tokenizer):
                ids.append(dialog.ids.astype(dtype))
                marks.append(dialog.answers.astype(np.uint8))
        return EncodedSplit(ids, {"rows": len(ids), "unanswered": unanswered}, marks)

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Returns the corpus of encoded conversations, and encodes the rows that are not in the cache.

        context  tokens of the longest sample, to which longer conversations are cut
        cache    folder of encoded data; None for the default

        Raises ValueError for a training or validation split in which no answer fits in the context.
        """
        encoded = self.load(cache)
        samples = encoded.samples(lambda path: read_conversations(path, context, encoded.tokenizer))
        train: Samples = PackedConversations(samples["train"]) if self.pack else samples["train"]
        identity = [TEMPLATE, self.pack, encoded.checksums]
        answers = samples["train"].num_answers
        return encoded.corpus(InstructCorpus, samples, identity, train, num_answers=answers)


class Conversations(TableRows):
    """Samples one to a row, of at most context + 1 tokens; `weights` are 1 on answers and 0 elsewhere.

    ids, marks  token ids of each conversation, and 1 on those of answers
    """

    def __init__(self, ids: TokenRows, marks: TokenRows, context: int, tokenizer: Tokenizer) -> None:
        self.context, self.eos = context, tokenizer.eos
        self.ids, self.marks = ids, marks
        lengths = np.minimum(self.ids.lengths, context + 1)
        total = np.concatenate([[0], np.cumsum(self.marks.flat, dtype=np.int64)])
        begin = self.ids.starts[:-1]
        answers = total[begin + lengths] - total[begin]
        self.row_numbers = np.flatnonzero(answers > 0)  # of the other rows every answer is cut off
        self.lengths, self.num_answers = lengths[self.row_numbers], int(answers[self.row_numbers].sum())
        self.truncated = int((self.lengths < self.ids.lengths[self.row_numbers]).sum())
        self.sizes = text_bytes(begin, lengths, self.ids.flat, tokenizer)[self.row_numbers]
        self.count_tokens()

    def __len__(self) -> int:
        return len(self.row_numbers)

    def row(self, i: int) -> tuple[Int[np.ndarray, "time"], Int[np.ndarray, "time"]]:
        """Returns the ids of sample i, and 1 on those of answers."""
        number, length = int(self.row_numbers[i]), int(self.lengths[i])
        return self.ids[number][:length].astype(np.int64), self.marks[number][:length].astype(np.int64)

    def question(self, i: int) -> tuple[list[int], list[int]]:
        """Returns the ids of sample i before its last answer, and those of that answer, uncut and without eos."""
        number = int(self.row_numbers[i])
        ids, marks = self.ids[number].tolist(), self.marks[number].tolist()
        end = len(ids) - 1 - marks[::-1].index(1)
        begin = end
        while begin > 0 and marks[begin - 1]:
            begin -= 1
        return ids[:begin], ids[begin:end]

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns padded rows with weights of 1 on the tokens of answers."""
        ids, marks = zip(*(self.row(int(i)) for i in index), strict=True)
        tokens, real = pad(ids, self.context + 1, self.eos, ahead=1)
        weights, _ = pad(marks, self.context + 1, 0, ahead=1)
        numbers = sample_numbers(index, epoch, len(self))
        return Batch(tokens=tokens, real=real, weights=weights.float(), samples=numbers)

    def describe(self, counts: Json) -> str:
        """Returns the numbers of samples, tokens and answers, and what was left out or cut."""
        unanswered, cut_off = counts["unanswered"], len(self.ids) - len(self.row_numbers)
        return (
            f"{len(self):,} samples, {self.num_tokens:,} tokens of which {self.num_answers:,} are answers"
            + (f"; {unanswered:,} rows without an answer left out" if unanswered else "")
            + (f"; {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f"; {cut_off:,} left out because all their answers were cut off" if cut_off else "")
        )

    def explain_empty(self, split: str) -> str:
        if len(self.ids):
            return f"no answer of the {split} split fits model.context={self.context}: raise model.context"
        return f"no row of the {split} split has an answer by the assistant"


def read_conversations(path: Path, context: int, tokenizer: Tokenizer) -> Conversations:
    """Returns the conversations of the files at `path`."""
    marks = read_rows(path.with_name(f"{path.name}-answers"), np.dtype(np.uint8))
    return Conversations(read_rows(path, id_dtype(tokenizer.vocab_size)), marks, context, tokenizer)


class PackedConversations(Samples):
    """Rows of several conversations end to end, as segments 0, 1, ...; their lengths determine the rows."""

    def __init__(self, samples: Conversations) -> None:
        self.samples = samples
        self.rows = pack_rows(samples.lengths, samples.context + 1)
        self.num_tokens, self.num_bytes = samples.num_tokens, samples.num_bytes

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns rows of packed samples, with the number of each sample's segment, and -1 on padding."""
        limit, rows, marks, segments = self.samples.context + 1, [], [], []
        for i in index:
            parts = [self.samples.row(j) for j in self.rows[int(i)]]
            rows.append(np.concatenate([ids for ids, _ in parts]))
            marks.append(np.concatenate([mark for _, mark in parts]))
            segments.append(np.repeat(np.arange(len(parts)), [len(ids) for ids, _ in parts]))
        tokens, real = pad(rows, limit, self.samples.eos, ahead=1)
        weights, _ = pad(marks, limit, 0, ahead=1)
        return Batch(
            tokens=tokens,
            real=real,
            weights=weights.float(),
            segments=torch.where(real, pad(segments, limit, 0, ahead=1)[0], -1),
            samples=sample_numbers(index, epoch, len(self)),
        )
