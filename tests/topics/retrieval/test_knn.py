"""kNN-LM against formulas by hand, and the choice of its settings on planted neighbors."""

import math

import numpy as np
import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.heads import LMHead
from kleiber.types.batch import Batch
from kleiber_topics.retrieval.datastore import Window
from kleiber_topics.retrieval.knn import (
    Datastore,
    Retrieved,
    Setting,
    build_datastore,
    choose_setting,
    entry_bytes,
    mix,
    most_probable,
)


def targets(log_probs: list[float], distances: list[list[float]], values: list[list[int]], ids: list[int]) -> Retrieved:
    return Retrieved(torch.tensor(log_probs).double(), torch.tensor(ids), torch.tensor(distances), torch.tensor(values))


CASE = targets([math.log(0.2), math.log(0.5)], [[0.0, 1.0, 2.0], [1.0, 1.0, 3.0]], [[7, 4, 7], [1, 2, 3]], [7, 9])


def test_neighbors_with_the_value_add_up_their_weights():
    weights = np.exp([0, -0.5, -1.0])
    expected = (weights[0] + weights[2]) / weights.sum()
    log_probs = CASE.neighbor_log_probs(temperature=2.0)
    assert log_probs[0].exp().item() == pytest.approx(expected) and log_probs[1] == -math.inf


def test_the_mixture_is_that_of_probabilities():
    mixed = CASE.mixed(0.3, 2.0).exp()
    neighbors = CASE.neighbor_log_probs(2.0).exp()
    assert mixed.tolist() == pytest.approx([0.7 * 0.2 + 0.3 * neighbors[0].item(), 0.7 * 0.5])


def test_interpolation_0_is_the_model_to_the_bit():
    assert torch.equal(mix(CASE.log_probs, CASE.neighbor_log_probs(1.0), 0.0), CASE.log_probs)


def test_the_choice_prefers_neighbors_that_know_and_leaves_out_those_that_do_not():
    right = targets([math.log(0.1)] * 4, [[1.0, 2.0]] * 4, [[5, 6]] * 4, [5] * 4)
    wrong = targets([math.log(0.1)] * 4, [[1.0, 2.0]] * 4, [[5, 6]] * 4, [8] * 4)
    assert choose_setting([right], None, None).interpolation == 0.95
    assert choose_setting([right], None, None).temperature < 0.2  # the nearest one is right
    assert choose_setting([wrong], None, None).interpolation == 0
    assert choose_setting([right], 0.3, 2.0) == Setting(0.3, 2.0)
    assert choose_setting([right], None, 2.0).temperature == 2.0
    assert choose_setting([right], 0.3, None).interpolation == 0.3


def test_data_sets_count_alike_in_a_common_choice():
    right = targets([math.log(0.1)] * 400, [[1.0, 1.0]] * 400, [[5, 5]] * 400, [5] * 400)
    wrong = targets([math.log(0.9)] * 4, [[1.0, 1.0]] * 4, [[5, 5]] * 4, [8] * 4)
    losses = {w: -(math.log(0.1 * (1 - w) + w) + math.log(0.9 * (1 - w))) for w in (0.4, 0.5, 0.6)}
    assert choose_setting([right, wrong], None, 1.0).interpolation == min(losses, key=lambda w: losses[w]) == 0.4


def test_an_entry_is_the_state_before_a_token_and_the_token():
    torch.manual_seed(0)
    model = Transformer(vocab_size=32, width=16, depth=1, num_heads=2, context=8).eval()
    windows = [Window(np.arange(6), 0), Window(np.arange(10, 14), 1)]
    store = build_datastore(model, windows, [1, 2], "hidden", 100)
    assert store.values.tolist() == [1, 2, 3, 4, 5, 11, 12, 13] and list(store.ends) == [5, 8]
    hidden = model(Batch(torch.arange(10, 13)[None])).hidden[0]
    assert torch.allclose(store.keys[5:], hidden, atol=1e-6)
    assert store.num_bytes(0) == 5 * entry_bytes(16) == 5 * 72


def test_the_most_probable_token_is_that_of_the_whole_mixture():
    head = LMHead(torch.nn.Parameter(torch.eye(4)))
    hidden = torch.tensor([[2.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    case = targets([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]], [[3, 3], [3, 2]], [0, 0])
    assert most_probable(hidden, head, case, Setting(0.0, 1.0)).tolist() == [0, 0]
    assert most_probable(hidden, head, case, Setting(0.5, 1.0)).tolist() == [3, 0]


def test_a_store_tells_its_bytes_by_size():
    store = Datastore(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), [2, 5])
    assert [store.num_bytes(i) for i in (0, 1)] == [40, 100]
