"""Pairs have equal length and a common ending, whose log-probability is their value."""

import pytest
import torch
from evals.small_models import tiny

from kleiber.data.tokenizers import Bytes
from kleiber.types.batch import Batch
from kleiber_topics.interpretability.patching.pairs import collate, pair_of_prompts, pair_of_sentences, read_pairs


def test_pairs_have_equal_length_and_a_common_ending():
    assert pair_of_sentences([1, 2, 3], [1, 2, 3, 4], 9) is None
    assert pair_of_sentences([1, 2, 3], [1, 2, 9], 9) is None, "nothing is left to predict"
    assert pair_of_sentences([1, 2, 3], [1, 2, 3], 9) is None
    assert pair_of_sentences([1, 2, 3, 4, 5], [1, 7, 3, 8, 5], 3) is None
    pair = pair_of_sentences([1, 2, 3, 4, 5, 6], [1, 7, 3, 8, 5, 6], 9)
    assert pair is not None and (pair.first, pair.reads, pair.targets) == (1, [3, 4], [5, 6])
    prompts = pair_of_prompts(([1, 2, 3], [4, 5]), ([1, 9, 3], [6]), 9)
    assert prompts is not None and (prompts.first, prompts.reads, prompts.targets, prompts.foil) == (1, [2], [4], 6)
    assert pair_of_prompts(([1, 2], [4]), ([1, 3], [4]), 9) is None


def test_the_value_is_the_log_probability_of_the_common_ending():
    model = tiny("dense")
    rows = [{"sentence_good": "cats eat", "sentence_bad": "cots eat"}, {"sentence_good": "a b", "sentence_bad": "c b"}]
    pairs = [pair for pair in read_pairs(Bytes(), rows, "", 9) if pair]
    batch = collate(pairs, "cpu")
    assert batch.offsets[1].tolist()[:3] == [-1, 0, 1] and (batch.offsets[1, 3:] == -1).all()
    assert batch.ends[0].tolist() == [False] * 3 + [True] * 5, "the differing token is no end"
    with torch.no_grad():
        values = batch.values(model, batch.clean)
        ids = torch.tensor([[Bytes.eos, *b"cats eat"]])
        log_p = model.head(model(Batch(ids[:, :-1])).hidden).log_softmax(-1)[0]
        expected = sum(float(log_p[place, ids[0, place + 1]]) for place in range(2, 8))
    assert float(values[0]) == pytest.approx(expected, abs=1e-4)
