"""Log-probabilities of many texts at a time, against one forward pass a text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.evals import likelihood
from kleiber.evals.likelihood import (
    cut_by_length,
    encode_pairs,
    log_likelihoods,
    pass_tokens,
    target_scores,
)
from kleiber.models.lstm import LSTM
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch
from kleiber.types.model import Model

CONTEXT = 24


def build(kind: type[Model] = Transformer, **options) -> Model:
    torch.manual_seed(0)
    heads = {"num_heads": 2} if kind is Transformer else {}
    model = kind(64, **{"depth": 2, "width": 32, "context": CONTEXT, "tied": False} | heads | options)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


@torch.no_grad()
def slow(model: Model, context: list[int], text: list[int]) -> tuple[float, bool]:
    """Log-probability and greedy flag of a text that fits into the context, from a forward pass of its own."""
    ids = (context + text)[-CONTEXT - 1 :]
    logits = model.head(model(Batch(torch.tensor([ids[:-1]]))).hidden)[0, -len(text) :]
    targets = torch.tensor(text)
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(log_probs.sum()), bool((logits.argmax(-1) == targets).all())


def draw(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def items() -> list[list[tuple[list[int], list[int]]]]:
    """Items with common beginnings of all kinds: none, all but the last token, equal texts, and cut-off contexts."""
    shared, long = draw(9, 1), draw(40, 2)
    return [
        [(draw(1), draw(3, 3))],
        [(shared, draw(5, 4)), (shared, draw(9, 5)), (shared, draw(1, 6))],
        [(shared, [7]), (shared, [8]), (shared, [9])],
        [([1], [*shared, 2, 3]), ([1], [*shared, 4])],
        [([1], [*shared, 2]), ([1], [*shared, 2])],
        [(long, draw(4, 7)), (long, draw(24, 8))],
        [(draw(20, 9), draw(2, 10)), (draw(20, 9), draw(4, 11)), (draw(20, 9)[:5], draw(3, 12))],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"causal": True, "num_kv_heads": 1, "qk_norm": False}, {"kind": LSTM}])
@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_scores_are_those_of_one_text_at_a_time(options, tokens, monkeypatch):
    model = build(**options).train()
    wanted = [slow(model.eval(), *pair) for item in items() for pair in item]
    model.train()
    found = log_likelihoods(model, items(), tokens, "scoring")
    assert found.log_probs.tolist() == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert found.greedy.tolist() == [greedy for _, greedy in wanted] and model.training
    monkeypatch.setattr(likelihood, "WORTHWHILE", 2.0)  # nothing is shared
    assert log_likelihoods(model, items(), tokens, "scoring").log_probs == pytest.approx(found.log_probs, abs=1e-4)


def test_a_common_beginning_is_read_once():
    model, read = build(), []
    model.embedding.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    question = [(draw(15), draw(4, seed)) for seed in range(1, 5)]
    log_likelihoods(model, [question], 1000, "scoring")
    assert sum(read) == 15 + 4 * 3  # the last token of a text is read by no one


def test_texts_that_differ_in_their_last_token_are_one_row():
    model, read = build(), []
    model.embedding.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    question = [(draw(15), [first, second, last]) for first in (1, 2) for second in (3, 4) for last in range(8)]
    log_likelihoods(model, [question], 1000, "scoring")
    assert sum(read) == 15 + 4 * 2


def test_the_greedy_continuation_is_recognized():
    model = build().eval()
    ids = draw(5)
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(model.head(model(Batch(torch.tensor([ids]))).hidden)[0, -1].argmax()))
    other = [*ids[5:7], (ids[7] + 1) % 64]
    assert log_likelihoods(model, [[(ids[:5], ids[5:]), (ids[:5], other)]], 100, "s").greedy.tolist() == [True, False]


def test_a_text_longer_than_the_context_is_scored_in_pieces_of_half_a_context():
    model = build().eval()
    whole = draw(62)
    starts = [2, 14, 26, 38, 50, 62]
    pieces = [slow(model, whole[:a], whole[a:b])[0] for a, b in pairwise(starts)]
    found = log_likelihoods(model, [[(whole[:2], whole[2:])]], 1000, "scoring")
    assert found.log_probs.tolist() == pytest.approx([sum(pieces)], abs=1e-4)


def test_target_scores_do_not_depend_on_the_chunk(monkeypatch):
    model, hidden, targets = build(), torch.randn(10, 32), torch.arange(10)
    whole = target_scores(hidden, model.head, targets)
    monkeypatch.setattr(likelihood, "LOGITS", 128)
    for a, b in zip(whole, target_scores(hidden, model.head, targets), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_rows_are_cut_by_tokens_and_by_padding(monkeypatch):
    monkeypatch.setattr(likelihood, "PASS", 5)
    assert list(cut_by_length([9, 9, 8, 2, 2], 18)) == [(0, 2), (2, 3), (3, 5)]
    assert list(cut_by_length([9, 9, 8, 2, 2], 1000)) == [(0, 3), (3, 5)]
    assert list(cut_by_length([30], 10)) == [(0, 1)] and list(cut_by_length([], 10)) == []


def test_a_pass_has_the_tokens_of_rows_of_full_context_up_to_what_a_cpu_cache_holds():
    assert pass_tokens(build(), 4) == 4 * CONTEXT and pass_tokens(build(), 10_000) == 2048


class Words(Bytes):
    """As SentencePiece: a text begins with a mark of its own."""

    def encode(self, text: str) -> list[int]:
        return [7, *super().encode(text)] if text else []

    def encode_many(self, texts):
        import numpy as np

        return [np.array(self.encode(text), np.int64) for text in texts]


class Begun(Bytes):
    bos, mask = 258, -1


def test_a_text_has_the_ids_that_it_has_after_its_context():
    assert encode_pairs(Words(), [("a little", " girl")]) == [([7, *b"a little"], list(b" girl"))]
    assert encode_pairs(Bytes(), [("a  ", "b")]) == [(list(b"a"), list(b"  b"))]
    with pytest.raises(ValueError, match="'' after 'a' as no tokens"):
        encode_pairs(Bytes(), [("a", "")])


def test_a_context_begins_as_in_lm_eval():
    """With the begin token where the tokenizer has one, and never without any token."""
    assert encode_pairs(Bytes(), [("a", "b"), ("", "b")]) == [(list(b"a"), list(b"b")), ([256], list(b"b"))]
    begun = Begun().with_separator("bos")
    assert encode_pairs(begun, [("a", "b"), ("", "b")]) == [([258, *b"a"], list(b"b")), ([258], list(b"b"))]
