"""Predictions of planted models, and temperatures that are recovered from labels drawn at them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from evals.planted import planted

from kleiber.data.tokenizers import Bytes
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.types.batch import Batch
from kleiber_topics.calibration.predictions import Predicted, has_outcomes, of_questions, of_samples


def predicted(logits: torch.Tensor, labels: list[int] | torch.Tensor) -> Predicted:
    return Predicted(logits, lambda x: x, torch.as_tensor(labels), np.arange(len(logits)))


def drawn_at(temperature: float, items: int = 4000) -> Predicted:
    """Logits, and labels drawn from the softmax of the logits over a temperature."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(items, 6, generator=random)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=random).squeeze(1)
    return predicted(logits, labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_recovered(temperature):
    assert drawn_at(temperature).half(odd=False).fit_temperature() == pytest.approx(temperature, rel=0.06)


def test_the_fitted_temperature_has_the_least_negative_log_likelihood():
    case = drawn_at(2.0, 300)
    best = case.fit_temperature()
    nats = [case.outcomes(factor * best).nats.mean() for factor in (0.98, 1.0, 1.02)]
    assert nats[1] < min(nats[0], nats[2])


def test_a_temperature_is_bounded_where_there_is_no_best_one():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert predicted(logits, [0, 1]).fit_temperature() < 0.1
    assert predicted(logits, [1, 0]).fit_temperature() == pytest.approx(1000)


def test_outcomes_are_those_of_the_softmax():
    logits = torch.tensor([[math.log(4), math.log(3), math.log(1)], [0.0, 0.0, -math.inf]], dtype=torch.float64)
    case = predicted(logits, [1, 0]).outcomes()
    assert case.confidence == pytest.approx([0.5, 0.5]) and case.correct.tolist() == [0, 0.5]
    assert case.nats == pytest.approx([-math.log(3 / 8), math.log(2)])
    assert case.brier == pytest.approx([0.25 + (5 / 8) ** 2 + (1 / 8) ** 2, 0.5])
    assert predicted(logits, [1, 0]).outcomes(0.5).confidence[0] == pytest.approx(16 / 26)


def test_halves_are_every_second_cluster():
    case = Predicted(torch.eye(6), lambda x: x, torch.arange(6), np.array([0, 0, 1, 2, 2, 3]))
    even, odd = case.half(odd=False), case.half(odd=True)
    assert even.labels.tolist() == [0, 1, 3, 4] and even.cluster.tolist() == [0, 0, 1, 1]
    assert odd.labels.tolist() == [2, 5] and odd.cluster.tolist() == [0, 1]


def test_questions_may_differ_in_their_number_of_answers():
    case = of_questions([np.log([0.1, 0.3]), np.log([0.2, 0.2, 0.4])], [1, 0])
    outcomes = case.outcomes()
    assert outcomes.confidence == pytest.approx([0.75, 0.5]) and outcomes.correct.tolist() == [1, 0]
    assert case.fit_temperature() > 0  # -inf of an answer that is not there gives no nan


def test_next_tokens_are_predicted_at_every_target_of_weight_above_0():
    model, ids = planted(a=0.5, b=0.25), torch.tensor([list(b"aab"), list(b"ab ")])
    batches = [Batch(ids, weights=torch.tensor([[1.0, 1, 1], [1, 0, 1]])), Batch(ids[:1])]
    case = of_samples(model, CLM(), batches)
    assert case.labels.tolist() == [*b"ab", *b" ", *b"ab"] and case.cluster.tolist() == [0, 0, 1, 2, 2]
    outcomes = case.outcomes()
    assert outcomes.confidence == pytest.approx([0.5] * 5, abs=1e-3) and outcomes.correct.tolist() == [1, 0, 0, 1, 0]
    assert outcomes.nats[:3] == pytest.approx([math.log(2), math.log(4), math.log(4)], abs=1e-3)


def test_masked_prediction_has_no_outcomes_here():
    causal, masked = planted(a=0.5), planted(False, a=0.5)
    assert has_outcomes(CLM(), causal) and not has_outcomes(MLM(Bytes()), masked)
