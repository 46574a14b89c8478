"""Scores of rows equal those of each row alone, and keys are the vectors that they are called."""

import numpy as np
import pytest
import torch
from topics.retrieval.stores import tiny_model

from kleiber.models.lstm import LSTM
from kleiber.types.batch import Batch
from kleiber_topics.retrieval.scoring import ScoredRow, check_key, mean_states, read_keys, score_rows


def rows(*lengths: int) -> list[ScoredRow]:
    random = np.random.default_rng(0)
    masks = [np.arange(length) >= length // 2 for length in lengths]
    return [ScoredRow(random.integers(256, size=len(mask)), mask, i) for i, mask in enumerate(masks)]


@pytest.mark.parametrize("tokens", [1, 1000])
def test_rows_of_unequal_length_are_scored_as_each_alone(tokens):
    model, texts = tiny_model(), rows(5, 12, 3, 33)
    targets = score_rows(model, texts, tokens, "hidden", "")
    expected, greedy, hidden = [], [], []
    for row in texts:
        states = model(Batch(torch.from_numpy(row.ids[None, :-1]))).hidden[0]
        log_probs = model.head(states).log_softmax(1)
        at = np.flatnonzero(row.scored)
        expected += [log_probs[t - 1, row.ids[t]].item() for t in at]
        greedy += [log_probs[t - 1].argmax().item() == row.ids[t] for t in at]
        hidden += [states[t - 1] for t in at]
    assert targets.log_probs.tolist() == pytest.approx(expected, abs=1e-5)
    assert targets.greedy.tolist() == greedy
    assert torch.allclose(targets.hidden, torch.stack(hidden), atol=1e-5) and targets.keys is targets.hidden
    assert targets.items.tolist() == [0] * 3 + [1] * 6 + [2] * 2 + [3] * 17


def test_the_key_ffn_is_what_the_last_feed_forward_part_reads():
    model, texts = tiny_model(), rows(4, 9)
    targets = score_rows(model, texts, 1000, "ffn", "")
    read = []
    handle = model.blocks[-1].mlp.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    for row in texts:
        model(Batch(torch.from_numpy(row.ids[None, :-1])))
    handle.remove()
    expected = [states[0, np.flatnonzero(row.scored) - 1] for states, row in zip(read, texts, strict=True)]
    assert torch.allclose(targets.keys, torch.cat(expected), atol=1e-5)
    assert not torch.allclose(targets.keys, targets.hidden, atol=1e-2)


def test_hooks_are_removed():
    model = tiny_model()
    with read_keys(model, "ffn"):
        assert len(model.blocks[-1].mlp._forward_pre_hooks) == 1
    assert len(model.blocks[-1].mlp._forward_pre_hooks) == 0


def test_a_model_without_feed_forward_part_has_hidden_states_alone():
    model = LSTM(vocab_size=272, width=16, depth=1, context=32)
    check_key(model, "hidden")
    with pytest.raises(ValueError, match="key=ffn"):
        check_key(model, "ffn")


def test_mean_states_are_of_real_tokens_and_of_length_one():
    model, texts = tiny_model(), [np.array([3, 4, 5, 6]), np.array([9, 8])]
    vectors = mean_states(model, texts, 1000, "")
    expected = [model(Batch(torch.from_numpy(text[None]))).hidden[0].mean(0) for text in texts]
    assert torch.allclose(vectors, torch.stack([v / v.norm() for v in expected]), atol=1e-5)
