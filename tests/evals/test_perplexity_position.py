"""Loss by position adds up to the loss, and each position has the loss of its own target."""

import numpy as np
import pytest
import torch

from kleiber.data.sources.recall import Recall
from kleiber.evals.perplexity import binned, loss_by_position
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(vocab_size=272, depth=1, width=32, context=64)


def test_positions_add_up_to_the_mean_loss(model):
    corpus = Recall().prepare(64)
    batches = [corpus.validation["recall"].gather(np.arange(i, i + 4)) for i in (0, 4)]
    losses, counts = loss_by_position(model, batches, torch.device("cpu"))
    whole = [CLM()(model, batch) for batch in batches]
    assert sum(losses) == pytest.approx(sum(float(one.metrics["ce"]) for one in whole), rel=1e-5)
    assert sum(counts) == sum(float(one.tokens) for one in whole) and counts[0] == 0


def test_each_position_has_the_loss_of_that_target(model):
    batch = Recall().prepare(64).train.gather(np.arange(3))
    batch.weights = None
    losses, _ = loss_by_position(model, [batch], torch.device("cpu"))
    logits = model.head(model(batch.map(lambda t: t[:, :-1] if t.dim() == 2 else t)).hidden)
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none").sum(0)
    assert losses == pytest.approx(each.tolist(), rel=1e-4)


def test_bins_double_and_name_their_last_position():
    assert binned([1.0] * 10, [1.0] * 4 + [0.0] * 4 + [2.0] * 2) == {1: 1.0, 2: 1.0, 4: 1.0, 10: 0.5}


def test_padding_and_the_first_token_of_a_segment_have_no_position(model):
    batch = Recall().prepare(64).train.gather(np.arange(3))
    batch.weights, batch.real = None, torch.arange(65) < torch.tensor([[65], [40], [10]])
    losses, counts = loss_by_position(model, [batch], torch.device("cpu"))
    assert sum(counts) == 64 + 39 + 9 and counts[9:39] == [2.0] * 30
    assert sum(losses) == pytest.approx(CLM()(model, batch).total.item(), rel=1e-5)
