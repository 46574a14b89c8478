"""Exact ranks, fitted ranks, and canaries that a model repeats or has never read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from topics.memorization.parrot import CONTEXT, Parrot, training_ids, with_canaries

from kleiber.data.tokenizers import Bytes
from kleiber.evals import encode_pairs
from kleiber.models.transformer import Transformer
from kleiber.types.batch import Batch
from kleiber_topics.memorization import exposure
from kleiber_topics.memorization.canaries import Canary
from kleiber_topics.memorization.exposure import (
    as_documents,
    draw_secrets,
    fitted_exposure,
    ranked_exposure,
    score_canaries,
)  # fmt: skip

CANARY = Canary("The code of Bo is ", "42", ".", 2, 1)


def test_the_exposure_of_a_rank() -> None:
    others = np.arange(1, 100, dtype=float)
    assert ranked_exposure(100.0, others) == pytest.approx(math.log2(100))
    assert ranked_exposure(0.0, others) == pytest.approx(0)
    assert ranked_exposure(75.5, others) == pytest.approx(math.log2(100) - math.log2(25))


def test_a_model_for_which_all_secrets_are_alike_exposes_one_bit_whether_ranked_or_fitted() -> None:
    rounding = np.random.default_rng(0).normal(0, 1e-6, 9999)
    assert ranked_exposure(-20.0, -20.0 + rounding) == pytest.approx(1, abs=1e-3)
    assert ranked_exposure(-20.0, np.full(9999, -20.0)) == pytest.approx(1, abs=1e-3)
    assert fitted_exposure(-20.0, np.full(512, -20.0), 4) == pytest.approx(1)
    assert ranked_exposure(3.0, np.array([5.0, 3.0, 3.0, 1.0])) == pytest.approx(math.log2(5 / 3))


def test_the_fit_agrees_with_the_rank_where_both_are_possible() -> None:
    random = np.random.default_rng(0)
    for power in (1.0, 0.5):  # a normal and a skewed distribution
        population = -(np.abs(random.normal(8, 1.0, 100_000)) ** power) * 3
        sample = population[:512]
        for share in (0.5, 0.9, 0.99):
            value = float(np.quantile(population, share))
            exact = ranked_exposure(value, np.delete(population, 0))
            assert fitted_exposure(value, sample, 5) == pytest.approx(exact, abs=0.15 + 0.08 * exact)
    assert fitted_exposure(50.0, sample, 5) == pytest.approx(5 * math.log2(10))
    assert fitted_exposure(-1e6, sample, 5) == 0
    assert fitted_exposure(1.0, np.zeros(5), 5) == pytest.approx(5 * math.log2(10))


def test_other_secrets_are_all_that_can_be_listed_or_a_sample_of_different_ones() -> None:
    random = np.random.default_rng(0)
    every = draw_secrets(CANARY, 30, random)
    assert len(every) == len(set(every)) == 99 and "42" not in every and "07" in every
    some = draw_secrets(Canary("The code of Bo is ", "00042", ".", 5, 1), 30, random)
    assert len(some) == len(set(some)) == 30 and "00042" not in some
    assert len(draw_secrets(Canary("The code of Bo is ", "0042", ".", 4, 1), 30, random)) == 9999


def test_the_exposure_of_three_digits_is_that_of_the_exact_rank() -> None:
    """Against the log-probabilities of all 1,000 secrets, each in a row of its own."""
    torch.manual_seed(0)
    model = Transformer(Bytes().vocab_size, depth=1, width=16, context=CONTEXT, num_heads=2)
    canary = Canary("The code of Bo is ", "042", ".", 3, 1)
    (remembered,) = score_canaries(model, Bytes(), [canary], 8, 4096)
    pairs = as_documents(Bytes(), encode_pairs(Bytes(), [(canary.before, f"{n:03d}") for n in range(1000)]))
    ids = torch.tensor([context + secret for context, secret in pairs])
    with torch.no_grad():
        probabilities = model.head(model(Batch(ids[:, :-1])).hidden).log_softmax(-1).gather(2, ids[:, 1:, None])
    log_probs = probabilities[:, -len(pairs[0][1]) :, 0].sum(1).numpy()
    rank = 1 + int((log_probs > log_probs[42]).sum())
    assert remembered.exact and remembered.exposure == pytest.approx(math.log2(1000 / rank), abs=0.02)


def test_a_context_begins_as_documents_do_in_training() -> None:
    tokenizer = Bytes()
    assert as_documents(tokenizer, [([1, 2], [3])]) == [([tokenizer.eos, 1, 2], [3])]
    assert as_documents(tokenizer, [([tokenizer.eos], [3])]) == [([tokenizer.eos], [3])]
    without = tokenizer.with_separator("none")
    assert as_documents(without, [([1, 2], [3])]) == [([1, 2], [3])]


@pytest.mark.parametrize("exact", [True, False])
def test_a_model_that_repeats_what_it_read_often_exposes_that_alone(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposure, "log_likelihoods", without_sharing(exposure.log_likelihoods))
    monkeypatch.setattr(exposure, "LISTED", 100 if exact else 50)
    corpus = with_canaries(tmp_path, repetitions=[0, 2, 9], count=3, digits=2)
    model = Parrot(training_ids(corpus), repetitions=5)
    canaries = score_canaries(model, Bytes(), corpus.canaries, 60, 4096)
    assert [c.repetitions for c in canaries] == [0, 0, 0, 2, 2, 2, 9, 9, 9]
    assert [c.extracted for c in canaries] == [False] * 6 + [True] * 3
    assert {c.exact for c in canaries} == {exact}
    assert all(c.exposure == pytest.approx(math.log2(100)) for c in canaries[6:])
    assert all(c.log_prob > canaries[0].log_prob for c in canaries[6:])
    scores = exposure.canary_scores(canaries)
    assert scores["extracted/9"].value == 1 and scores["extracted/2"].value == 0 and scores["extracted/0"].n == 3
    assert scores["exposure/9"].value == pytest.approx(math.log2(100)) and scores["exposure/0"].value < 6.7
    assert scores["extracted/9"].lo == pytest.approx(0.05 ** (1 / 3)) and scores["extracted/9"].hi == 1


def without_sharing(function):
    """`log_likelihoods`, where no two texts are of one item: the parrot has no cache."""
    return lambda model, items, *rest: function(model, [[pair] for item in items for pair in item], *rest)
