"""Held-out loss: the objective's own mean, bits per byte where they have a meaning, and the loss of each position."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.routing.moe_text import moe_subject
from evals.subjects import values

from kleiber.evals.perplexity import Perplexity, bin_by_position
from kleiber.evals.task_scores import Runtime, score_task
from kleiber.evals.text_loss import text_losses
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch
from kleiber.types.contracts import Task

CPU = torch.device("cpu")


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(vocab_size=272, depth=1, width=32, context=64)


def test_each_domain_has_its_tokens_loss_and_bits_per_byte():
    subject = moe_subject()
    results = Perplexity().evaluate(subject).scores
    assert set(results) == {"low", "high"} and results["low"]["loss"].n == 11 * 16 + 8  # the last row is half padding
    task = Task("low", CLM(), subject.samples("low"))
    expected = score_task(subject.model, task, None, 5, Runtime())
    assert values(results["low"]) == pytest.approx(values(expected), rel=1e-5)
    assert {name: score.n for name, score in expected.items()} == {"loss": 11 * 16 + 8, "bits_per_byte": 11 * 16 + 8}
    unlikely = Perplexity().evaluate(replace(subject, objective=MeanlessCLM())).scores
    assert "bits_per_byte" not in unlikely["low"]


class MeanlessCLM(CLM):
    likelihood = False


def weighted(rows, seed=0):
    """Rows of which some tokens are targets, and none of the first two."""
    random = np.random.default_rng(seed)
    weights = torch.from_numpy((random.random((rows, 65)) < 0.3).astype(np.float32))
    weights[:, :2] = 0
    return Batch(torch.from_numpy(random.integers(0, 256, (rows, 65))), weights=weights)


def by_position(model, batches):
    losses = text_losses(model, CLM(), batches, CPU)
    return losses.by_position.tolist(), losses.counts.tolist()


def test_positions_add_up_to_the_mean_loss(model):
    batches = [weighted(4, seed) for seed in (0, 1)]
    losses, counts = by_position(model, batches)
    whole = [CLM()(model, batch) for batch in batches]
    assert sum(losses) == pytest.approx(sum(float(loss.metrics["ce"]) for loss in whole), rel=1e-5)
    assert sum(counts) == sum(float(loss.tokens) for loss in whole) and counts[0] == 0


def test_each_position_has_the_loss_of_that_target(model):
    batch = weighted(3)
    batch.weights = None
    losses, _ = by_position(model, [batch])
    logits = model.head(model(batch.map(lambda t: t[:, :-1] if t.dim() == 2 else t)).hidden)
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none").sum(0)
    assert losses == pytest.approx(each.tolist(), rel=1e-4)


def test_padding_and_the_first_token_of_a_segment_have_no_position(model):
    batch = weighted(3)
    batch.weights, batch.real = None, torch.arange(65) < torch.tensor([[65], [40], [10]])
    losses, counts = by_position(model, [batch])
    assert sum(counts) == 64 + 39 + 9 and counts[9:39] == [2.0] * 30
    assert sum(losses) == pytest.approx(CLM()(model, batch).total.item(), rel=1e-5)


def test_a_wider_batch_adds_positions(model):
    batch = weighted(3)
    batch.weights = None
    narrow = batch.map(lambda t: t[:, :33] if t.dim() == 2 else t)
    losses, counts = by_position(model, [narrow, batch])
    assert len(losses) == 64 and counts == [6.0] * 32 + [3.0] * 32


def test_positions_are_scores_where_they_are_asked_for():
    subject = moe_subject()
    plain, results = (Perplexity(positions=flag).evaluate(subject) for flag in (False, True))
    assert results.details == plain.details
    for name, scores in results.scores.items():
        expected = {f"position/{end}": loss for end, loss in results.details["positions"][name].items()}
        added = {key: score.value for key, score in scores.items() if key not in plain.scores[name]}
        assert added == expected and len(expected) > 2


def test_bins_double_and_have_the_name_of_their_last_position():
    assert bin_by_position([1.0] * 10, [1.0] * 4 + [0.0] * 4 + [2.0] * 2) == {1: 1.0, 2: 1.0, 4: 1.0, 10: 0.5}
