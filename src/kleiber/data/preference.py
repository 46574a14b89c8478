"""Pairs of answers to one prompt, of which one was preferred: prompt, chosen, rejected, or two whole transcripts.

A sample is a pair: `tokens` hold the chosen conversation, `against` the rejected one. Both keep the same end of the
prompt where model.context is short, and answers are cut at their end. Pairs that differ nowhere, or where an answer is
missing, teach nothing and are left out; they are counted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer

from kleiber.data import chat, padding
from kleiber.data.cache import SPLITS, cache_root, cached, digest
from kleiber.data.chat import Conversation, Encoded, Turn, encoded, turns
from kleiber.data.corpus import TextCorpus, as_bytes, choose_tokenizer
from kleiber.data.instruct import TEMPLATE
from kleiber.data.padding import Held, numbers, pad, sizes
from kleiber.data.sources.open import locate
from kleiber.data.sources.table import Row, Table, batches, must_have, table_name
from kleiber.data.token_files import dtype
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def transcript(text: str) -> Conversation:
    """Turns of a transcript of `\\n\\nHuman: ...` and `\\n\\nAssistant: ...` (Bai et al. 2022, arXiv:2204.05862); none
    of an empty one."""
    pieces = SPOKEN.split(text)
    if pieces[0].strip():
        raise ValueError(
            f"the text {text[:60]!r} does not begin with Human: or Assistant:, as a transcript does; answers alone "
            "need a column called prompt beside them"
        )
    return [
        Turn("user" if who == "Human" else "assistant", content)
        for who, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def pair(row: Row) -> tuple[Conversation, Conversation]:
    """The chosen and the rejected conversation of a row, each up to its last answer."""
    return side(row, "chosen"), side(row, "rejected")


def side(row: Row, name: str) -> Conversation:
    """The conversation that ends with the answer of column `name`, after the prompt where there is a column of it."""
    value = row[name]
    if "prompt" not in row:
        return transcript(value or "") if value is None or isinstance(value, str) else turns(value, name)
    before, answer = chat.side(row["prompt"], "user", "prompt"), chat.side(value, "assistant", name)
    # Some tables repeat the prompt's messages in front of each answer, after a system's where the prompt has none.
    first = 1 if answer and answer[0].role == "system" and before and before[0].role != "system" else 0
    return answer if answer[first : first + len(before)] == before else [*before, *answer]


def asked(row: Row, name: str) -> list[str]:
    """The texts before the answer of column `name`."""
    return [turn.content for turn in side(row, name)[:-1]]


@dataclass
class AnsweredCorpus(TextCorpus):
    """Answers that a frozen model is asked about; `folder` is where what it says of them is kept."""

    folder: Path = Path()

    def kept(self, key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays by name, computed once for `key` and this data; of several processes one computes."""

        def build(folder: Path) -> dict[str, Any]:
            for name, values in compute().items():
                np.save(folder / f"{name}.npy", values)
            return {}

        folder, _ = cached(self.folder, f"{self.name}-reference", {"key": key, "corpus": self.hash}, build)
        return {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}

    def rows(self) -> dict[str, Any]:
        """All samples by split, held-out ones in the order of the table."""
        held = {"validation": self.validation, "test": self.test}
        by_split: dict[str, Any] = {"train": self.train}
        by_split |= {split: scored.samples for split, by_name in held.items() for scored in by_name.values()}  # type: ignore
        return by_split


@dataclass
class PreferenceCorpus(AnsweredCorpus):
    """Pairs. num_tokens are those of both sides."""

    def pairs(self) -> dict[str, PairRows]:
        return self.rows()


@dataclass(frozen=True)
class Answers:
    """A table of answers, each of which is read beside another one to the same prompt.

    max_bytes  at most that much text of each split
    """

    path: str
    config: str | None = None
    name: str | None = None
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    max_bytes: int | float | str | None = None

    def table(self) -> Table:
        """The rows, and what must stand in them."""
        raise NotImplementedError

    def read(self, rows: list[Row]) -> tuple[list[tuple[Conversation, Conversation]], list[float]]:
        """Both sides and the label of each row that teaches something."""
        raise NotImplementedError

    def parts(self, context: int, cache: Path | None, kind: type[PairRows]) -> dict[str, Any]:
        """What a corpus of samples of this kind is made of."""
        table, root = self.table(), cache_root(cache)
        tokenizer = choose_tokenizer(self.tokenizer, self.vocab_size, [table], root)
        folder, manifest = table.kept(tokenizer, root, lambda f, splits: self.encode(f, splits, tokenizer))
        samples = {name: kind(folder / name, context, tokenizer) for name in manifest["splits"]}
        for name, split in samples.items():
            log.info("%s %s: %s", table.name, name, split.described(manifest["splits"][name]))
            if name != "test" and len(split) == 0:
                raise ValueError(f"data.path={self.path}: the {name} split has no {kind.sample_name}")
        held = {name: Held(split) for name, split in samples.items() if name != "train" and len(split)}
        files = [file["sha256"] for file in manifest["files"].values()]
        return {
            "name": table.name,
            "config": manifest["config"],
            "hash": digest([tokenizer.hash, TEMPLATE, context, files]),
            "tokenizer": tokenizer,
            "train": samples["train"],
            "validation": {table.name: held["validation"]},
            "test": {table.name: held["test"]} if "test" in held else {},
            "manifest": {table.name: manifest},
            "num_tokens": samples["train"].num_tokens,
            "num_bytes": samples["train"].num_bytes,
            "folder": root,
        }

    def encode(self, folder: Path, splits: dict[str, Dataset], tokenizer: Tokenizer) -> dict[str, Any]:
        """Writes both sides of every pair, the lengths of their answers and the labels; returns counts by split."""
        counts, kind = {}, dtype(tokenizer.vocab_size)
        for name in (split for split in SPLITS if split in splits):
            rows = 0
            sides: list[Encoded] = []
            labels: list[float] = []
            for batch in batches(splits[name]):
                pairs, verdicts = self.read(batch)
                rows += len(batch)
                sides += encoded([dialog for dialogs in pairs for dialog in dialogs], tokenizer, last_only=True)
                labels += verdicts
            padding.write(folder / name, (dialog.ids for dialog in sides), kind)
            # Answers stand at the end of a side: their lengths say where.
            np.save(folder / f"{name}.answers.npy", np.array([dialog.answers.sum() for dialog in sides], np.int64))
            np.save(folder / f"{name}.labels.npy", np.array(labels, np.float32))
            share = float(np.mean(labels)) if labels else None
            counts[name] = {"rows": len(labels), "useless": rows - len(labels), "share": share}
        return {"splits": counts}


@dataclass(frozen=True)
class Preference(Answers):
    """Pairs at `path`: columns prompt, chosen, rejected (text or messages), or chosen and rejected transcripts."""

    def table(self) -> Table:
        """The rows, and the columns that must be in them."""
        place = locate(self.path)

        def checked(table: Dataset) -> None:
            must_have(table, [("a pair needs", "chosen"), ("a pair needs", "rejected")], place.name)

        def texts(row: Row) -> list[str]:
            chosen, rejected = pair(row)
            return [turn.content for turn in [*chosen, *rejected[-1:]]]

        name = self.name or table_name(place, self.config)
        meaning = ["preference", TEMPLATE, "labels", "by prompt", "first turn"]  # what older caches lack
        limit, prompt = as_bytes(self.max_bytes), partial(asked, name="chosen")
        return Table(place, self.config, name, texts, checked, meaning, limit, prompt)

    def read(self, rows: list[Row]) -> tuple[list[tuple[Conversation, Conversation]], list[float]]:
        pairs = [pair(row) for row in rows]
        good = [dialogs for dialogs in pairs if _teaches(*dialogs)]
        lengths = [tuple(len(dialog[-1].content) for dialog in dialogs) for dialogs in good]
        return good, [1.0 if chosen > rejected else 0.5 * (chosen == rejected) for chosen, rejected in lengths]

    def prepare(self, context: int, cache: Path | None = None) -> PreferenceCorpus:
        return PreferenceCorpus(**self.parts(context, cache, PairRows))


def _teaches(chosen: Conversation, rejected: Conversation) -> bool:
    return answered(chosen) and answered(rejected) and chosen != rejected


def answered(dialog: Conversation) -> bool:
    return bool(dialog) and dialog[-1].role == "assistant" and dialog[-1].content != ""


class PairRows(Samples):
    """Pairs of one split. `labels` are 1 where the chosen answer is the longer one, 1/2 where both are as long.

    reference  log-probabilities of both answers under a frozen model, once somebody has set them
    """

    padded = True
    sides = 2  # rows of the batch that a sample fills
    sample_name = "pair of two different answers"

    def __init__(self, path: Path, context: int, tokenizer: Tokenizer) -> None:
        self.context, self.eos = context, tokenizer.eos
        self.ids = padding.read(path, dtype(tokenizer.vocab_size))
        self.labels = np.load(path.with_suffix(".labels.npy"))
        answers = np.load(path.with_suffix(".answers.npy"))
        prompts = self.ids.lengths - answers
        # The longer answer of a pair decides how much of the prompt there is room for: at least half a row.
        longest = answers.reshape(-1, 2).max(1, initial=0).repeat(2)
        room = np.maximum(context + 1 - longest, (context + 1) // 2)
        self.skipped = np.maximum(prompts - room, 0)
        self.prompts = prompts - self.skipped
        self.answers = np.minimum(answers, context + 1 - self.prompts)
        kept = self.prompts + self.answers
        self.truncated = int(((self.skipped > 0) | (self.answers < answers)).reshape(-1, 2).any(1).sum())
        self.lengths = self.counted(kept)
        begin = self.ids.starts[:-1] + self.skipped
        self.sizes = self.counted(sizes(begin, kept, self.ids.flat, tokenizer))
        self.num_tokens, self.num_bytes = int(self.lengths.sum()), int(self.sizes.sum())
        self.reference: Float[np.ndarray, "pairs 2"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def counted(self, sides: Int[np.ndarray, "sides"]) -> Int[np.ndarray, "pairs"]:
        """What a sample counts of its two sides: both."""
        return sides.reshape(-1, 2).sum(1)

    def side(self, i: int) -> tuple[Integer[np.ndarray, "time"], Integer[np.ndarray, "time"]]:
        """Ids and marks of side i: pair i // 2, chosen where i is even."""
        prompt, answer, skipped = int(self.prompts[i]), int(self.answers[i]), int(self.skipped[i])
        ids = self.ids[i][skipped : skipped + prompt + answer].astype(np.int64)
        return ids, np.repeat(np.array([0, 1]), [prompt, answer])

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Rows of the chosen answers, with those of the rejected ones in `against`."""
        chosen, rejected = self._rows(2 * index), self._rows(2 * index + 1)
        chosen.against = rejected
        chosen.labels = torch.from_numpy(self.labels[index])
        chosen.samples = numbers(index, epoch, len(self))
        if self.reference is not None:
            chosen.reference = torch.from_numpy(self.reference[index])
        return chosen

    def _rows(self, sides: Int[np.ndarray, "batch"]) -> Batch:
        ids, marks = zip(*(self.side(int(i)) for i in sides), strict=True)
        tokens, real = pad(ids, self.context + 1, self.eos, ahead=1)
        weights, _ = pad(marks, self.context + 1, 0, ahead=1)
        return Batch(tokens=tokens, real=real, weights=weights.float())

    def described(self, count: dict[str, Any]) -> str:
        """A line for the log: the number of pairs, and what was left out or cut."""
        return (
            f"{len(self):,} pairs"
            + (f"; {count['useless']:,} rows without two different answers left out" if count["useless"] else "")
            + (f"; {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f"; the longer answer was chosen in {count['share']:.1%}" if count["share"] is not None else "")
        )
