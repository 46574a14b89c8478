"""A model that repeats its training text: after the last tokens of a place in it, the next token of that place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from kleiber.data.corpus import TextCorpus
from kleiber.data.text import Text
from kleiber.data.token_files import TrainWindows
from kleiber.nn.heads import LMHead
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model
from kleiber_topics.memorization.canaries import Canaries

CONTEXT = 64


class Parrot(Model):
    """Gives the next token of the training text a log-odds of `certainty` after a string of `length` tokens of it."""

    vocab_size = width = 272
    context = CONTEXT

    def __init__(self, text: np.ndarray, length: int = 9, certainty: float = 12.0, repetitions: int = 1) -> None:
        super().__init__()
        self.length, self.head = length, LMHead(nn.Parameter(torch.eye(272)), multiplier=certainty)
        self.next: dict[tuple[int, ...], int] = {}
        times: dict[tuple[int, ...], int] = {}
        ids = text.tolist()
        for i in range(len(ids) - length):
            key = tuple(ids[i : i + length])
            times[key] = times.get(key, 0) + 1
            if times[key] >= repetitions:
                self.next[key] = ids[i + length]

    def forward(self, batch: Batch, caches: object = None) -> Output:
        rows = batch.tokens.tolist()
        guesses = torch.zeros(*batch.tokens.shape, 272)
        for i, row in enumerate(rows):
            for j in range(self.length - 1, len(row)):
                token = self.next.get(tuple(row[j + 1 - self.length : j + 1]))
                if token is not None:
                    guesses[i, j, token] = 1.0
        return Output(guesses)

    def new_caches(self, length: int) -> None:  # type: ignore[override]
        raise NotImplementedError


def with_canaries(folder: Path, **options: object) -> TextCorpus:
    """Half of the lines of a text of random words, with canaries; the other half is held out."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), 4)) for _ in range(3000)]
    lines = [" ".join(random.choice(words, 12)) for _ in range(200)]
    path = folder / "words.txt"
    path.write_text("\n".join(lines))
    return Canaries(Text(str(path)), **options).prepare(CONTEXT, folder / "cache")  # type: ignore[arg-type]


def training_ids(corpus: TextCorpus) -> np.ndarray:
    assert isinstance(corpus.train, TrainWindows)
    return np.asarray(corpus.train.file.ids)
