"""Areas and rates against their definitions, and attacks on a model that repeats its training text."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch
from kleiber_topics.memorization.memorization import (
    attack_values,
    auc,
    membership_scores,
    sample_values,
    true_positive_rate,
    without_canaries,
)  # fmt: skip


def test_the_area_is_the_probability_of_the_right_order() -> None:
    members, others = np.array([3.0, 1.0, 2.0, 2.0]), np.array([2.0, 0.0, 1.5])
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert auc(members, others).value == pytest.approx(np.mean(pairs))
    assert auc(members, others).n == 7
    apart = auc(np.array([5.0, 6.0]), np.array([1.0, 2.0]))
    assert (apart.value, apart.lo, apart.hi) == (1, 1, 1)


def test_the_interval_of_the_area_is_that_of_repeated_samples() -> None:
    random = np.random.default_rng(0)
    scores = [auc(random.normal(0.5, 1, 150), random.normal(0, 1, 100)) for _ in range(200)]
    truth = 0.638  # P(N(.5, 2) > 0)
    covered = np.mean([score.lo <= truth <= score.hi for score in scores])
    assert 0.83 <= covered <= 0.96


def test_the_rate_at_one_false_positive_in_a_hundred() -> None:
    others = np.arange(200.0)  # 2 of 200 may be above: the threshold is 197
    assert true_positive_rate(np.array([197.0, 197.5, 198.5, 500.0]), others).value == 0.75
    few = np.arange(20.0)  # none may be above
    score = true_positive_rate(np.array([19.0, 19.5, 3.0]), few)
    assert score.value == pytest.approx(1 / 3) and score.lo is not None and score.lo <= 1 / 3 <= score.hi


def test_the_values_of_a_sample() -> None:
    values = sample_values(np.array([-1.0, -5.0, -2.0, -4.0]), "abab", 0.5)
    bits = 8 * len(zlib.compress(b"abab"))
    assert values == [-3.0, -4.5, pytest.approx(-12 / bits), -bits]
    assert sample_values(np.array([-1.0, -5.0]), "ab", 0.01)[1] == -5


def test_values_are_those_of_each_row_and_leave_padding_out() -> None:
    torch.manual_seed(0)
    model = Transformer(Bytes.vocab_size, depth=1, width=32, num_heads=2, context=16).eval()
    tokens = torch.randint(97, 120, (3, 9))
    whole = attack_values(model, Bytes(), [Batch(tokens[:2]), Batch(tokens[2:])], 0.3)
    with torch.no_grad():
        logits = model.head(model(Batch(tokens[:, :-1])).hidden).log_softmax(-1)
    expected = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert np.allclose(whole["loss"], expected.mean(1).numpy(), atol=1e-5)
    assert np.allclose(whole["min_k"], expected.sort(1).values[:, :2].mean(1).numpy(), atol=1e-5)
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[0, 5:] = False
    short = attack_values(model, Bytes(), [Batch(tokens, real=real)], 0.3)
    assert short["loss"][0] == pytest.approx(float(expected[0, :4].mean()), abs=1e-5)
    assert np.allclose(short["loss"][1:], whole["loss"][1:], atol=1e-6)
    assert math.isclose(short["blind"][1], whole["blind"][1])


def test_scores_have_an_area_for_each_attack_and_a_rate_for_those_with_a_model() -> None:
    members = {"loss": np.array([2.0, 3.0]), "blind": np.array([1.0, 1.0])}
    others = {"loss": np.array([0.0, 1.0]), "blind": np.array([1.0, 1.0])}
    scores = membership_scores(members, others)
    assert set(scores) == {"membership_auc/loss", "membership_tpr/loss", "membership_auc/blind"}
    assert scores["membership_auc/loss"].value == 1 and scores["membership_auc/blind"].value == 0.5


def test_samples_with_a_piece_of_a_canary_are_left_out() -> None:
    canary = "The code of Bolmar Tesu is 402913."
    texts = ["nothing here", f"xx{canary[:20]}", "of Bolmar Tesu is 40", "Tesu is 402913.", "short"]
    assert without_canaries(texts, [canary]) == [0, 3, 4]
    assert without_canaries(texts, [canary], length=8) == [0, 4]
    assert without_canaries(texts, []) == [0, 1, 2, 3, 4]
