"""Pairs of answers to one prompt, one of which is preferred.

A table has the columns prompt, chosen and rejected, or two whole transcripts in the columns chosen and rejected. In a
row with `template: plain`, as `kleiber judge` writes it, the answers continue the prompt as one text.

A sample is a pair: `tokens` contain the chosen conversation, `counterpart` the rejected one. Where model.context is
short, both keep the same end of the prompt, and answers are cut at their end. Pairs of equal answers, and pairs that
lack an answer, are left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Integer

from kleiber.data.batches import HeldOutRows, pad, sample_numbers, text_bytes
from kleiber.data.cache import cached_folder
from kleiber.data.chat import (
    PLAIN,
    TEMPLATE,
    Conversation,
    Turn,
    encode_conversations,
    is_answer,
    parse_column,
    parse_messages,
)
from kleiber.data.corpus import EncodedSplit, TableRows, TextCorpus
from kleiber.data.dataset import require_columns, row_batches
from kleiber.data.table import TableData
from kleiber.data.token_files import id_dtype, read_rows
from kleiber.records.arrays import read_array, write_array
from kleiber.records.regular_files import path_inside
from kleiber.types import Json, Row
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

MARKS = "answers begin at the first token that the prompt lacks"  # part of identities
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def parse_transcript(text: str) -> Conversation:
    r"""Returns the turns of a transcript of `\n\nHuman: ...` and `\n\nAssistant: ...`; none for an empty text.

    The format is that of Bai et al. 2022, arXiv:2204.05862. Raises ValueError for text that begins otherwise.
    """
    pieces = SPEAKER.split(text)
    if pieces[0].strip():
        raise ValueError(
            f"the text {text[:60]!r} must begin with Human: or Assistant:, as a transcript does; a table of answers "
            "alone needs a column `prompt`"
        )
    return [
        Turn("user" if speaker == "Human" else "assistant", content)
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def parse_answer(row: Row, column: str) -> Conversation:
    """Returns the conversation that ends with the answer in `column`, after the column `prompt` if there is one."""
    value = row[column]
    if "prompt" not in row:
        return (
            parse_transcript(value or "") if value is None or isinstance(value, str) else parse_messages(value, column)
        )
    if row.get("template") == "plain":
        return [Turn(PLAIN, row["prompt"] or ""), Turn("assistant", value or "")]
    prompt, answer = parse_column(row["prompt"], "user", "prompt"), parse_column(value, "assistant", column)
    # Some tables repeat the prompt's messages before each answer, after a system message that the prompt lacks.
    first = 1 if answer and answer[0].role == "system" and prompt and prompt[0].role != "system" else 0
    return answer if answer[first : first + len(prompt)] == prompt else [*prompt, *answer]


def parse_pair(row: Row) -> tuple[Conversation, Conversation]:
    """Returns the chosen and the rejected conversation of a row, each up to its last answer."""
    return parse_answer(row, "chosen"), parse_answer(row, "rejected")


def is_usable(pair: tuple[Conversation, Conversation]) -> bool:
    """Whether both conversations of a pair end with an answer, and the answers differ."""
    return all(map(ends_with_answer, pair)) and pair[0] != pair[1]


def ends_with_answer(dialog: Conversation) -> bool:
    """Whether the last turn is an answer by the assistant that is not empty."""
    return bool(dialog) and is_answer(dialog[-1])


@dataclass
class AnswerCorpus(TextCorpus):
    """Answers that a frozen model can score once; `folder` is the cache that keeps its scores."""

    folder: Path = Path()

    def cached_arrays(self, key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns arrays by name, computed once for `key` and this data; of several processes, one computes them."""

        def build(folder: Path) -> Json:
            for name, values in compute().items():
                write_array(path_inside(folder, f"{name}.npy"), values)
            return {}

        identity = {"key": key, "corpus": self.hash}
        folder, _ = cached_folder(self.folder, f"{self.name}-reference", identity, build)
        return {path.stem: read_array(path) for path in sorted(folder.glob("*.npy"))}

    def rows(self) -> dict[str, PairRows]:
        """Returns all samples by split; held-out ones are in the order of the table."""
        held_out = {"validation": self.validation, "test": self.test}
        samples = {"train": self.train}
        samples |= {split: _samples(scored) for split, by_name in held_out.items() for scored in by_name.values()}
        return {split: rows for split, rows in samples.items() if isinstance(rows, PairRows)}


def _samples(held_out: HeldOut) -> TableRows:
    assert isinstance(held_out, HeldOutRows) and isinstance(held_out.samples, TableRows)
    return held_out.samples


@dataclass(frozen=True)
class Pairs:
    """Both conversations and the label of each sample of some rows, and the number of rows without any."""

    pairs: Sequence[tuple[Conversation, Conversation]]
    labels: Sequence[float]
    useless: int


@dataclass(frozen=True)
class AnswerTable(TableData):
    """A table of answers, each of which is paired with another answer to the same prompt."""

    def read(self, rows: Dataset) -> Iterator[Pairs]:
        """Yields the samples of the rows of a split, in order."""
        raise NotImplementedError

    def encode_split(self, rows: Dataset, tokenizer: Tokenizer) -> EncodedSplit:
        """Encodes both conversations of every pair; an answer is at the end of its row, so its length is enough."""
        dtype = id_dtype(tokenizer.vocab_size)
        ids: list[Integer[np.ndarray, "_"]] = []
        answers: list[int] = []
        labels: list[float] = []
        useless = 0
        for batch in self.read(rows):
            useless += batch.useless
            encoded = encode_conversations([d for pair in batch.pairs for d in pair], tokenizer, last_only=True)
            for label, sides in zip(batch.labels, zip(encoded[::2], encoded[1::2], strict=True), strict=True):
                if not all(side.answers.any() for side in sides):  # such as white space that a tokenizer drops
                    useless += 1
                    continue
                labels.append(label)
                ids += [side.ids.astype(dtype) for side in sides]
                answers += [int(side.answers.sum()) for side in sides]
        share = float(np.mean(labels)) if labels else None
        counts = {"rows": len(labels), "useless": useless, "share": share}
        arrays = {"answers": np.array(answers, np.int64), "labels": np.array(labels, np.float32)}
        return EncodedSplit(ids, counts, arrays=arrays)


@dataclass
class PreferenceCorpus(AnswerCorpus):
    """Pairs of answers. num_tokens counts the tokens of both conversations of a pair."""


@dataclass(frozen=True)
class Preference(AnswerTable):
    """Pairs at `path`: columns prompt, chosen, rejected (text or messages), or chosen and rejected transcripts.

    max_bytes  at most that much text of each split
    """

    conversational: ClassVar[bool] = True  # its texts stand in the chat template, which an export then has too
    sides: ClassVar[int] = 2  # answers in a sample

    def identity(self) -> list[object]:
        return ["preference", TEMPLATE, "labels", "by prompt", "first turn", MARKS]

    def check_columns(self, table: Dataset, name: str) -> None:
        require_columns(table, ["chosen", "rejected"], name)

    def texts(self, row: Row) -> list[str]:
        chosen, rejected = parse_pair(row)
        return [turn.content for turn in [*chosen, *rejected[-1:]]]

    def prompt_texts(self, row: Row) -> list[str] | None:
        pair = parse_pair(row)
        return [turn.content for turn in pair[0][:-1]] if is_usable(pair) else None

    def read(self, rows: Dataset) -> Iterator[Pairs]:
        """Yields the pairs, and 1 where the chosen answer is the longer one, 1/2 where both are equally long."""
        for batch in row_batches(rows):
            pairs = [pair for pair in map(parse_pair, batch) if is_usable(pair)]
            lengths = [(len(chosen[-1].content), len(rejected[-1].content)) for chosen, rejected in pairs]
            labels = [1.0 if chosen > rejected else 0.5 * (chosen == rejected) for chosen, rejected in lengths]
            yield Pairs(pairs, labels, len(batch) - len(pairs))

    def prepare(self, context: int, cache: Path | None = None) -> PreferenceCorpus:
        """Encodes the rows that are not in the cache. Raises ValueError for a split without usable pairs."""
        encoded = self.load(cache)
        samples = encoded.samples(lambda path: PairRows(path, context, encoded.tokenizer))
        identity = [TEMPLATE, context, encoded.checksums]
        return encoded.corpus(PreferenceCorpus, samples, identity, folder=encoded.root)


class PairRows(TableRows):
    """Pairs of one split. `labels` are 1 where the chosen answer is the longer one, 1/2 where both are equally long.

    reference  log-probabilities of both answers under a frozen model, or None until they are set
    """

    sides = 2  # rows of the batch that a sample fills

    def __init__(self, path: Path, context: int, tokenizer: Tokenizer) -> None:
        self.context, self.eos = context, tokenizer.eos
        self.ids = read_rows(path, id_dtype(tokenizer.vocab_size))
        self.labels = read_array(path.with_suffix(".labels.npy"))
        answers = read_array(path.with_suffix(".answers.npy"))
        prompts = self.ids.lengths - answers
        # The longer answer of a pair determines how much of the prompt there is room for: at least half a row.
        longest = answers.reshape(-1, 2).max(1, initial=0).repeat(2)
        room = np.maximum(context + 1 - longest, (context + 1) // 2)
        self.skipped = np.maximum(prompts - room, 0)
        self.prompts = prompts - self.skipped
        self.answers = np.minimum(answers, context + 1 - self.prompts)
        lengths = self.prompts + self.answers
        self.truncated = int(((self.skipped > 0) | (self.answers < answers)).reshape(-1, 2).any(1).sum())
        self.lengths = self.per_sample(lengths)
        begin = self.ids.starts[:-1] + self.skipped
        self.sizes = self.per_sample(text_bytes(begin, lengths, self.ids.flat, tokenizer))
        self.count_tokens()
        self.reference: Float[np.ndarray, "pairs 2"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def per_sample(self, sides: Int[np.ndarray, "sides"]) -> Int[np.ndarray, "pairs"]:
        """Returns the sum over both conversations of each pair of `sides`, which has a value per conversation."""
        return sides.reshape(-1, 2).sum(1)

    def side(self, i: int) -> tuple[Integer[np.ndarray, "time"], Integer[np.ndarray, "time"]]:
        """Returns ids and answer marks of conversation i: that of pair i // 2, the chosen one where i is even."""
        prompt, answer, skipped = int(self.prompts[i]), int(self.answers[i]), int(self.skipped[i])
        ids = self.ids[i][skipped : skipped + prompt + answer].astype(np.int64)
        return ids, np.repeat(np.array([0, 1]), [prompt, answer])

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns rows of the chosen answers, with those of the rejected ones in `counterpart`."""
        batch = self._rows(2 * index)
        batch.counterpart = self._rows(2 * index + 1)
        batch.labels = torch.from_numpy(self.labels[index])
        batch.samples = sample_numbers(index, epoch, len(self))
        if self.reference is not None:
            batch.reference = torch.from_numpy(self.reference[index])
        return batch

    def _rows(self, sides: Int[np.ndarray, "batch"]) -> Batch:
        ids, marks = zip(*(self.side(int(i)) for i in sides), strict=True)
        tokens, real = pad(ids, self.context + 1, self.eos, ahead=1)
        weights, _ = pad(marks, self.context + 1, 0, ahead=1)
        return Batch(tokens=tokens, real=real, weights=weights.float())

    def describe(self, counts: Json) -> str:
        """Returns the number of pairs, and what was left out or cut."""
        return (
            f"{len(self):,} pairs"
            + (f"; {counts['useless']:,} rows without two different answers left out" if counts["useless"] else "")
            + (f"; {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f"; the longer answer was chosen in {counts['share']:.1%}" if counts["share"] is not None else "")
        )

    def explain_empty(self, split: str) -> str:
        return f"the {split} split has no pair of two different answers"
