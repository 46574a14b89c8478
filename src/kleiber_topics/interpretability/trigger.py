"""Text with planted causes: one rare token of a row, the trigger, decides the last token of the row.

A row is a window of text in which one token is replaced by a trigger, and whose last two tokens are a question mark of
its own id and the answer. Each trigger has one answer, so only the trigger tells which answer follows. The ids of
triggers are bytes that no UTF-8 text has, and so are that of the question and those of the answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Int

from kleiber.config import Quantity
from kleiber.data import TextCorpus, TextData, digest, splitmix64
from kleiber.types import Batch, HeldOut, Planted, Samples, Seed

TRIGGERS = [0xC0, 0xC1, *range(0xF5, 0xFB)]  # bytes that UTF-8 never has
ANSWERS = [*range(0x0E, 0x16)]  # control characters, which no text has
QUESTION = 0xFF


@dataclass(frozen=True)
class Trigger:
    """Settings of text with triggers, over the text of `data`, which is encoded as bytes.

    triggers   number of different triggers, and of answers
    max_bytes  replaces that of `data`; null: leaves it as it is
    """

    data: TextData
    triggers: Annotated[int, Ge(2), Le(len(TRIGGERS))] = 8
    seed: Seed = 0
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Prepares `data`, and plants triggers in it.

        Raises ValueError for text that is not encoded as bytes, and for a context below 3.
        """
        if context < 3:
            raise ValueError(f"model.context={context} must be >= 3, so that a trigger and a question fit")
        data = self.data if self.max_bytes is None else replace(self.data, max_bytes=self.max_bytes)
        corpus = data.prepare(context, cache)
        if corpus.tokenizer.name != "bytes":
            raise ValueError(f"data.data.tokenizer={corpus.tokenizer.name} must be bytes, of which some are triggers")
        held_out = [TriggerRows(samples, self.triggers, self.seed + 1) for samples in corpus.validation.values()]
        return replace(
            corpus,
            name="trigger",
            config=f"{self.triggers} triggers in {corpus.name}",
            hash=digest([corpus.hash, "trigger", self.triggers, self.seed]),
            train=TriggerSamples(corpus.train, self.triggers, self.seed),
            validation={"trigger": held_out[0]},
            test={},
        )


class TriggerSamples(Samples):
    """The samples of a text, each with a trigger at a random place, and the question and answer at its end.

    Only the answer is a target: its loss is 0 for a model that finds the trigger.
    """

    def __init__(self, text: Samples, triggers: int, seed: int) -> None:
        self.text, self.triggers, self.seed = text, triggers, seed
        self.num_tokens, self.num_bytes = text.num_tokens, text.num_bytes

    def __len__(self) -> int:
        return len(self.text)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """The rows of these numbers; another epoch has other triggers in other places."""
        tokens = self.text.gather(index, epoch).tokens.numpy().copy()
        places, kinds = self._draw(np.asarray(index, np.int64), epoch, tokens.shape[1])
        rows = np.arange(len(tokens))
        tokens[rows, places] = np.array(TRIGGERS)[kinds]
        tokens[:, -2], tokens[:, -1] = QUESTION, np.array(ANSWERS)[kinds]
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, -1] = 1.0
        numbers = torch.from_numpy(np.asarray(index, np.int64) + epoch * len(self))
        return Batch(torch.from_numpy(tokens), weights=torch.from_numpy(weights), samples=numbers)

    def planted(self, index: Int[np.ndarray, "batch"]) -> Planted:
        """The answer of each row, and its trigger."""
        time = self.gather(index[:1]).tokens.shape[1]
        places, _ = self._draw(np.asarray(index, np.int64), 0, time)
        return Planted(np.full(len(index), time - 1), np.arange(time) == places[:, None])

    def _draw(
        self, index: Int[np.ndarray, "batch"], epoch: int, time: int
    ) -> tuple[Int[np.ndarray, "batch"], Int[np.ndarray, "batch"]]:
        """The place of the trigger in each row, before the question, and its number."""
        key = splitmix64(np.array([self.seed % 2**32 * 2**20 + epoch], np.uint64))
        rows = splitmix64(index.astype(np.uint64) ^ key)
        random = splitmix64(rows[:, None] + np.arange(2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        places, kinds = random[:, 0] % np.uint64(time - 2), random[:, 1] % np.uint64(self.triggers)
        return places.astype(np.int64), kinds.astype(np.int64)


class TriggerRows(TriggerSamples, HeldOut):
    """Held-out text with triggers."""

    def __init__(self, text: HeldOut, triggers: int, seed: int) -> None:
        super().__init__(text, triggers, seed)
        self.held_out = text

    def first(self, tokens: int | None) -> TriggerRows:
        return TriggerRows(self.held_out.first(tokens), self.triggers, self.seed)
