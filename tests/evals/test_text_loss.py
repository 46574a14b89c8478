"""Losses of samples and their intervals, and strided windows against a loop over targets."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.subjects import values

from kleiber.data.batches import ConcatSamples, order_of
from kleiber.data.order import Reading
from kleiber.data.token_files import TokenFile, TrainWindows, ValidationWindows
from kleiber.data.tokenizers import Bytes
from kleiber.evals import Perplexity
from kleiber.evals.evaluation import DataSet, Subject
from kleiber.evals.task_scores import held_out_loss
from kleiber.evals.text_loss import (
    TextLosses,
    spread_samples,
    strided_losses,
    strided_windows,
    text_losses,
    training_parts,
)
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.types.batch import Batch

CONTEXT = 16


def build(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        Bytes.vocab_size, **{"depth": 2, "width": 32, "context": CONTEXT, "num_heads": 2} | options
    ).eval()


def token_file(length: int, seed: int = 0) -> TokenFile:
    ids = np.random.default_rng(seed).integers(97, 123, length).astype(np.uint16)
    return TokenFile(ids, length - 1, length - 1, hashlib.sha256(ids.tobytes()).hexdigest())


def text(length: int, seed: int = 0) -> ValidationWindows:
    return ValidationWindows(token_file(length, seed), CONTEXT, Bytes())


def own(name: str, samples: ValidationWindows) -> DataSet:
    return DataSet(name, lambda: samples, of_run=True)


def subject(
    model: Transformer, train: TrainWindows | ConcatSamples | None = None, **texts: ValidationWindows
) -> Subject:
    sets = [own(name, samples) for name, samples in texts.items()]
    return Subject(model, Bytes(), CLM(), CLM(), sets, train, sets, rows=3)


@torch.no_grad()
def loss_at(model: Transformer, ids: np.ndarray, target: int, before: int) -> float:
    """-log p of one target from `before` tokens before it."""
    row = torch.tensor([ids[target - before : target].tolist()])
    return -float(model.head(model(Batch(row)).hidden)[0, -1].log_softmax(-1)[int(ids[target])])


@pytest.mark.slow
@pytest.mark.parametrize(("length", "stride"), [(60, 1), (60, 5), (60, 16), (17, 4), (10, 4), (34, 7)])
def test_strided_windows_equal_a_loop_over_targets(length, stride):
    model, samples = build(), text(length)
    total, end = 0.0, min(CONTEXT, length - 1)
    for target in range(1, length):
        if target > end:
            end = min(end + stride, length - 1)
        before = target - max(0, end - CONTEXT)
        assert before >= min(target, CONTEXT - stride)
        total += loss_at(model, samples.file.ids, target, before)
    losses = strided_losses(model, samples, stride, 3, "cpu")
    assert losses.num_targets == length - 1 and sum(losses.nats) == pytest.approx(total, rel=1e-5)


def test_windows_score_each_target_once():
    for targets, stride in ((5, 3), (16, 3), (17, 3), (100, 7), (100, 16)):
        windows = strided_windows(targets, CONTEXT, stride)
        scored = [t for end, count in windows for t in range(end - count + 1, end + 1)]
        assert scored == list(range(1, targets + 1)) and all(count <= stride for _, count in windows[1:])


def test_the_losses_of_samples_add_up_to_the_loss_of_the_objective():
    model, samples = build(), text(60)
    batches = [samples.gather(np.arange(0, 3)), samples.gather(np.arange(3, len(samples)))]
    losses = text_losses(model, CLM(), batches, "cpu")
    whole = held_out_loss(model, CLM(), batches, "cpu").means()["ce"]
    assert losses.means()[0] == pytest.approx(float(whole), rel=1e-5) and len(losses.nats) == len(samples)
    assert losses.by_position.sum() == pytest.approx(sum(losses.nats)) and losses.counts.sum() == 59
    masked = build(causal=False)
    objective = MLM(Bytes())
    found = text_losses(masked, objective, batches, "cpu")
    whole = held_out_loss(masked, objective, batches, "cpu").means()["ce"]
    assert found.means()[0] == pytest.approx(float(whole), rel=1e-5) and len(found.nats) == 2


def test_the_interval_is_that_of_the_mean_over_samples():
    draws = np.random.default_rng(0).normal(3, 1, 400)
    score = TextLosses(draws.tolist(), [1.0] * 400).score()
    half = 1.645 * draws.std() / 20
    assert (score.lo, score.hi) == pytest.approx((draws.mean() - half, draws.mean() + half), abs=0.15 * half)
    alone = TextLosses([6.0], [2.0]).score()
    assert (alone.value, alone.lo, alone.n) == (3.0, None, 2)
    heavy = TextLosses([10.0, 1.0], [10.0, 2.0]).score()
    assert heavy.value == pytest.approx(11 / 12) and (heavy.lo, heavy.hi) == (0.5, 1.0)


def test_perplexity_has_intervals_positions_and_the_gap_to_the_training_text():
    model, held_out = build(), text(100)
    train = TrainWindows(token_file(400, seed=1), CONTEXT)
    results = Perplexity().evaluate(subject(model, train, docs=held_out))
    scores = results.scores["docs"]
    assert scores["loss"].lo < scores["loss"].value < scores["loss"].hi and scores["loss"].n == 99
    assert scores["bits_per_byte"].value == pytest.approx(scores["loss"].value / np.log(2))
    chosen = [train.gather(spread_samples(train, 99))]
    ours = float(held_out_loss(model, CLM(), chosen, "cpu").means()["ce"])
    assert scores["gap"].value == pytest.approx(ours - scores["loss"].value, abs=1e-5)
    assert scores["gap"].lo < scores["gap"].value < scores["gap"].hi
    assert set(results.details["positions"]["docs"]) == {1, 2, 4, 8, 16}
    assert set(Perplexity().figures({"scores": {}, "details": results.details}, None)) == {"position"}


def test_the_gap_of_each_domain_is_to_its_own_training_text():
    parts = [TrainWindows(token_file(200, seed), CONTEXT) for seed in (1, 2)]
    both = subject(build(), ConcatSamples(parts), docs=text(60), code=text(80))
    scores = Perplexity().evaluate(both).scores
    alone = Perplexity().evaluate(subject(build(), parts[1], code=text(80))).scores
    assert values(scores["code"]) == pytest.approx(values(alone["code"]))
    assert training_parts(replace(both, train=parts[0])) == {}
    assert "gap" not in Perplexity().evaluate(subject(build(), None, docs=text(60))).scores["docs"]


def test_the_gap_is_to_the_samples_that_the_run_has_read():
    train, model = TrainWindows(token_file(400), CONTEXT), build()
    halfway = replace(subject(model, train, docs=text(200)), reading=Reading(seed=0, rows=2, steps=1))
    (read,) = training_parts(halfway).values()
    assert sorted(order_of(train, 0).samples_at(np.arange(2))[0]) == read.numbers.tolist()
    scores = Perplexity().evaluate(halfway).scores["docs"]
    ours = float(held_out_loss(model, CLM(), [read.gather(np.arange(2))], "cpu").means()["ce"])
    assert scores["gap"].value == pytest.approx(ours - scores["loss"].value, abs=1e-5)
    assert training_parts(halfway.after(100)) == {"docs": train}


def test_the_stride_is_that_of_the_windows():
    model, samples = build(), text(60)
    found = Perplexity(stride=4).evaluate(subject(model, None, docs=samples)).scores["docs"]["loss"]
    assert found.value == pytest.approx(strided_losses(model, samples, 4, 3, "cpu").means()[0]) and found.n == 59
    plain = Perplexity().evaluate(subject(model, None, docs=samples)).scores["docs"]["loss"]
    assert plain.value != pytest.approx(found.value, abs=1e-4)


def test_a_stride_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"evals\.perplexity\.stride=17 must be <= model\.context=16"):
        Perplexity(stride=17).check(build())
    with pytest.raises(ValueError, match="causal"):
        Perplexity(stride=4).check(build(causal=False))
    Perplexity(stride=16).check(build())


def test_samples_at_equal_distances_have_about_as_many_targets():
    train = TrainWindows(token_file(1000), CONTEXT)
    chosen = spread_samples(train, 100)
    assert len(chosen) == 6 and np.ptp(np.diff(chosen)) <= 1 and chosen[-1] < len(train)
    assert len(spread_samples(train, 10**9)) == len(train)
