"""Conversations to learn answers from: instructions, questions, chats of many turns. A row of the table is a sample.

Several samples share a row of the batch, each in a segment of its own that attention does not leave. What does not fit
model.context is cut at its end; a sample whose answers are all cut off, or that has none, is left out and counted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int

from kleiber.data import padding
from kleiber.data.cache import SPLITS, cache_root, digest
from kleiber.data.chat import FORMS, Conversation, Turn, conversation, encoded, recognised
from kleiber.data.corpus import TextCorpus, as_bytes, choose_tokenizer
from kleiber.data.padding import Held, numbers, packed, pad, sizes
from kleiber.data.sources.open import locate
from kleiber.data.sources.table import Row, Table, batches, must_have, table_name
from kleiber.data.token_files import dtype
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Samples, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

TEMPLATE = "chat/1"  # part of every identity: raise it when the template changes


@dataclass
class InstructCorpus(TextCorpus):
    """Conversations. num_tokens are all real ones, those that are only read included; `num_answers` the targets."""

    num_answers: int = 0


@dataclass(frozen=True)
class Instruct:
    """Conversations at `path`: columns messages; prompt, response; instruction, input, output; question, answer.

    prompt, response  names of the two columns, where they are others
    pack              several samples to a row, as many as fit; false: one, with padding
    max_bytes         at most that much text of each split
    """

    path: str
    config: str | None = None
    prompt: str | None = None
    response: str | None = None
    name: str | None = None
    pack: bool = True
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    max_bytes: int | float | str | None = None

    def conversation(self, row: Row) -> Conversation:
        if self.prompt is None or self.response is None:
            return conversation(row)
        return conversation({"prompt": row[self.prompt], "response": row[self.response]})

    def table(self) -> Table:
        """The rows, and the columns that must be in them."""
        if (self.prompt is None) != (self.response is None):
            raise ValueError(f"data.prompt={self.prompt} and data.response={self.response}: name both columns or none")
        place = locate(self.path)

        def checked(table: Dataset) -> None:
            """Raises ValueError for a table without columns of conversations."""
            if self.prompt is not None and self.response is not None:
                must_have(table, [("data.prompt", self.prompt), ("data.response", self.response)], place.name)
            elif not recognised(table.column_names):
                raise ValueError(
                    f"data.path={place.name} has the columns {', '.join(table.column_names)}: conversations are read "
                    f"from {FORMS}; for others set data.prompt=COLUMN data.response=COLUMN"
                )

        def texts(row: Row) -> list[str]:
            return [turn.content for turn in self.conversation(row)]

        name = self.name or table_name(place, self.config)
        meaning = ["instruct", TEMPLATE, self.prompt, self.response]
        return Table(place, self.config, name, texts, checked, meaning, as_bytes(self.max_bytes))

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Encodes what is not in the cache. Raises ValueError for a split without an answer that fits the context."""
        table, root = self.table(), cache_root(cache)
        tokenizer = choose_tokenizer(self.tokenizer, self.vocab_size, [table], root)
        folder, manifest = table.kept(tokenizer, root, lambda f, splits: self._encode(f, splits, tokenizer))
        samples = {name: Conversations(folder / name, context, tokenizer) for name in manifest["splits"]}
        for name, split in samples.items():
            log.info("%s %s: %s", table.name, name, split.described(manifest["splits"][name]["unanswered"]))
            if name != "test" and len(split) == 0:
                fits = f"no answer of the {name} split fits model.context={context}: raise it"
                nothing = f"no row of the {name} split has an answer by the assistant: there is nothing to learn"
                raise ValueError(f"data.path={self.path}: {fits if len(split.ids) else nothing}")
        held: dict[str, HeldOut] = {n: Held(split) for n, split in samples.items() if n != "train" and len(split)}
        train: Samples = Packed(samples["train"]) if self.pack else samples["train"]
        return InstructCorpus(
            name=table.name,
            config=manifest["config"],
            hash=digest([tokenizer.hash, TEMPLATE, self.pack, [f["sha256"] for f in manifest["files"].values()]]),
            tokenizer=tokenizer,
            train=train,
            validation={table.name: held["validation"]},
            test={table.name: held["test"]} if "test" in held else {},
            manifest={table.name: manifest},
            num_tokens=train.num_tokens,
            num_bytes=train.num_bytes,
            num_answers=samples["train"].num_answers,
        )

    def _encode(self, folder: Path, splits: dict[str, Dataset], tokenizer: Tokenizer) -> dict[str, Any]:
        counts = {}
        for name in (split for split in SPLITS if split in splits):
            unanswered = 0
            ids, marks = [], []
            for batch in batches(splits[name]):
                dialogs = [self.conversation(row) for row in batch]
                full = [dialog for dialog in dialogs if any(_answers(turn) for turn in dialog)]
                unanswered += len(dialogs) - len(full)
                for dialog in encoded(full, tokenizer):
                    ids.append(dialog.ids.astype(dtype(tokenizer.vocab_size)))
                    marks.append(dialog.answers.astype(np.uint8))
            padding.write(folder / name, ids, dtype(tokenizer.vocab_size))
            padding.write(folder / f"{name}-answers", marks, np.dtype(np.uint8))
            counts[name] = {"rows": len(ids), "unanswered": unanswered}
        return {"splits": counts}


def _answers(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.content != ""


class Conversations(Samples):
    """Samples one to a row, of at most `context` + 1 tokens; `weights` are 1 on answers and 0 elsewhere."""

    padded = True

    def __init__(self, path: Path, context: int, tokenizer: Tokenizer) -> None:
        self.context, self.eos = context, tokenizer.eos
        self.ids = padding.read(path, dtype(tokenizer.vocab_size))
        self.marks = padding.read(path.with_name(f"{path.name}-answers"), np.dtype(np.uint8))
        kept = np.minimum(self.ids.lengths, context + 1)
        total = np.concatenate([[0], np.cumsum(self.marks.flat, dtype=np.int64)])
        begin = self.ids.starts[:-1]
        answers = total[begin + kept] - total[begin]
        self.chosen = np.flatnonzero(answers > 0)  # of the rest every answer was cut off
        self.lengths, self.num_answers = kept[self.chosen], int(answers[self.chosen].sum())
        self.truncated = int((self.lengths < self.ids.lengths[self.chosen]).sum())
        self.sizes = sizes(begin, kept, self.ids.flat, tokenizer)[self.chosen]
        self.num_tokens, self.num_bytes = int(self.lengths.sum()), int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self.chosen)

    def row(self, i: int) -> tuple[Int[np.ndarray, "time"], Int[np.ndarray, "time"]]:
        """Ids and marks of sample i."""
        at, length = int(self.chosen[i]), int(self.lengths[i])
        return self.ids[at][:length].astype(np.int64), self.marks[at][:length].astype(np.int64)

    def question(self, i: int) -> tuple[list[int], list[int]]:
        """Ids of sample i up to its last answer, and those of that answer without the end of text, uncut."""
        at = int(self.chosen[i])
        ids, marks = self.ids[at].tolist(), self.marks[at].tolist()
        end = len(ids) - 1 - marks[::-1].index(1)
        begin = end
        while begin > 0 and marks[begin - 1]:
            begin -= 1
        return ids[:begin], ids[begin:end]

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        ids, marks = zip(*(self.row(int(i)) for i in index), strict=True)
        tokens, real = pad(ids, self.context + 1, self.eos, ahead=1)
        weights, _ = pad(marks, self.context + 1, 0, ahead=1)
        return Batch(tokens=tokens, real=real, weights=weights.float(), samples=numbers(index, epoch, len(self)))

    def described(self, unanswered: int) -> str:
        """A line for the log: counts of samples, tokens and answers, and what was left out."""
        lost = len(self.ids) - len(self.chosen)
        return (
            f"{len(self):,} samples, {self.num_tokens:,} tokens of which {self.num_answers:,} are answers"
            + (f"; {unanswered:,} rows without an answer left out" if unanswered else "")
            + (f"; {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f"; {lost:,} left out, since all their answers were cut off" if lost else "")
        )


class Packed(Samples):
    """Rows of several conversations end to end, as segments 0, 1, ...; which ones is fixed by their lengths."""

    def __init__(self, samples: Conversations) -> None:
        self.samples = samples
        self.rows = packed(samples.lengths, samples.context + 1)
        self.num_tokens, self.num_bytes = samples.num_tokens, samples.num_bytes

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Rows of packed samples, with the number of each sample's segment, -1 on padding."""
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
            samples=numbers(index, epoch, len(self)),
        )
