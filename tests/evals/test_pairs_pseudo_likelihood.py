"""Pseudo-log-likelihoods, against one forward pass for each hidden token."""

from __future__ import annotations

import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.evals.pairs import pseudo_log_likelihoods
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch

CONTEXT = 24


def build() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(64, depth=2, width=32, context=CONTEXT, num_heads=2, tied=False, causal=False)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


def draw(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Tokens(Bytes):
    mask, eos = 60, 61


@torch.no_grad()
def slow_pseudo(model: Transformer, ids: list[int]) -> float:
    row, total = [61, *ids], 0.0
    for at in range(1, len(row)):
        hidden = [*row[:at], 60, *row[at + 1 :]]
        total += float(model.head(model(Batch(torch.tensor([hidden]))).hidden)[0, at].log_softmax(-1)[row[at]])
    return total


def test_each_token_is_hidden_once():
    model = build()
    texts = [draw(5, 1), draw(9, 2), draw(9, 3), draw(1, 4)]
    wanted = [slow_pseudo(model, text) for text in texts]
    for tokens in (1, 40, 1000):
        assert pseudo_log_likelihoods(model, texts, Tokens(), tokens, "s") == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_a_long_text_is_read_around_each_hidden_token():
    model = build()
    text = draw(40)
    row, total = [61, *text], 0.0
    for at in range(1, 41):
        first = min(max(0, at - CONTEXT // 2), 41 - CONTEXT)
        window = row[first : first + CONTEXT]
        window[at - first] = 60
        logits = model.head(model(Batch(torch.tensor([window]))).hidden)[0, at - first]
        total += float(logits.log_softmax(-1)[row[at]])
    assert pseudo_log_likelihoods(model, [text], Tokens(), 100, "s").tolist() == pytest.approx([total], abs=1e-4)
