"""Datastores and models whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from evals.subjects import subject_on_tables
from torch import nn

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.token_files import TokenFile, ValidationWindows
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.transformer import Transformer
from kleiber.nn.heads import LMHead
from kleiber.types import Row
from kleiber.types.batch import Batch, Output
from kleiber.types.model import DecodingCache, Model

CONTEXT = 32


class TokenCache(DecodingCache):
    """The tokens that have been read."""

    tokens: torch.Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]


class Copier(Model):
    """Predicts what followed the last token the time before, and where it did not occur, the token 0."""

    vocab_size = width = 272
    context = CONTEXT

    def __init__(self) -> None:
        super().__init__()
        self.head = LMHead(nn.Parameter(torch.eye(272)), multiplier=50.0)

    def forward(self, batch: Batch, caches: TokenCache | None = None) -> Output:
        read, new = batch.tokens, batch.tokens.shape[1]
        if caches is not None:
            read = caches.tokens = torch.cat([*([] if caches.tokens is None else [caches.tokens]), read], 1)
        guesses = [[self.after(row[: t + 1]) for t in range(len(row) - new, len(row))] for row in read.tolist()]
        return Output(nn.functional.one_hot(torch.tensor(guesses), 272).float())

    def new_caches(self, length: int) -> TokenCache:
        return TokenCache()

    def after(self, row: list[int]) -> int:
        places = [i for i in range(len(row) - 1) if row[i] == row[-1]]
        return row[places[-1] + 1] if places else 0


def tiny_model(context: int = CONTEXT) -> Transformer:
    """A model with random weights."""
    torch.manual_seed(0)
    return Transformer(vocab_size=272, width=16, depth=2, num_heads=2, context=context).eval()


def windows(documents: Sequence[str], context: int = CONTEXT) -> ValidationWindows:
    """Documents of bytes as windows of one text."""
    ids = np.array([i for text in documents for i in (Bytes.eos, *text.encode())], np.uint16)
    size = sum(len(text) for text in documents)
    return ValidationWindows(TokenFile(ids, size, size, ""), context, Bytes())


def on_text(model: Model, text: Sequence[str], store: Sequence[str]) -> Subject:
    """A model whose training text is `store`, on documents."""
    return replace(subject_on_tables(model), data=[DataSet("text", lambda: windows(text))], train=windows(store))


def on_rows(model: Model, rows: Sequence[Row], store: Sequence[str]) -> Subject:
    """The same on a table."""
    return replace(subject_on_tables(model, table=rows), train=windows(store))


def random_text(characters: int, seed: int) -> str:
    """Random letters."""
    return "".join(chr(97 + i) for i in np.random.default_rng(seed).integers(26, size=characters))
