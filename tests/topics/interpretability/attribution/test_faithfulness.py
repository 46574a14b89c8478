"""Deletion and insertion reward the true ranking, agreement is Spearman's, and planted causes are counted."""

import numpy as np
import pytest
import torch
from evals.small_models import TIME, Sums
from topics.interpretability.attribution.explained import predictions

from kleiber.records.progress import Activity
from kleiber_topics.interpretability.attribution.faithfulness import (
    Removal,
    agreement,
    area,
    gains,
    planted_scores,
    random_attributions,
    rank_correlation,
    ranks,
)


def sums() -> Sums:
    torch.manual_seed(0)
    return Sums(torch.randn(32, 3))


def test_the_true_ranking_is_better_than_a_random_one_and_its_reverse_is_worse():
    model = sums()
    chosen = predictions(model, 8)
    truth = model.embedding.weight[chosen.batch.tokens, 0].detach()
    removal = Removal(model, torch.zeros(3), 9, 1000, Activity(""))
    for test in ("deletion", "insertion"):
        curves = {
            name: removal.curves(chosen, ranks(values, chosen), test)
            for name, values in {"true": truth, "reverse": -truth}.items()
        }
        random = removal.curves(chosen, ranks(random_attributions(chosen, 0), chosen), test)
        scores = gains(curves, random, test)
        assert scores[f"{test}_gain/true"].lo > 0 > scores[f"{test}_gain/reverse"].hi
        assert scores[f"{test}/true"].value == pytest.approx(area(curves["true"]).mean())
        ends = [curves["true"][:, 0], curves["true"][:, -1]]
        with torch.no_grad():
            whole = chosen.log_probs(model).numpy()
        empty = np.full(8, -np.log(2))  # all logits are 0
        expected = [whole, empty] if test == "deletion" else [empty, whole]
        assert all(np.allclose(end, value, atol=1e-6) for end, value in zip(ends, expected, strict=True))


def test_a_curve_changes_equal_shares_and_tokens_of_other_texts_take_their_place():
    model = sums()
    chosen = predictions(model, 3)
    order = ranks(torch.arange(TIME).float().expand(3, -1), chosen)
    assert order[0].tolist() == list(range(TIME))[::-1]
    curve = Removal(model, None, 3, 1000, Activity("")).curves(chosen, order, "deletion")
    tokens = torch.where(torch.arange(TIME) >= 6, chosen.replacement, chosen.batch.tokens)
    with torch.no_grad():
        assert np.allclose(curve[:, 1], chosen.with_tokens(tokens).log_probs(model).numpy(), atol=1e-6)
    assert (chosen.replacement != chosen.batch.tokens).any(1).all()
    assert all(any((row == other).all() for other in chosen.batch.tokens) for row in chosen.replacement)


def test_the_area_of_a_line_is_its_mean():
    assert area(np.array([[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]])).tolist() == [1.0, 4.0]


def test_rank_correlation_is_that_of_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    for _ in range(5):
        a, b = random.integers(0, 4, 12).astype(float), random.normal(size=12)
        expected = stats.spearmanr(a, b).statistic
        assert rank_correlation(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected)
    chosen = predictions(sums(), 4)
    values = random_attributions(chosen, 1)
    scores = agreement({"a": values, "b": 2 * values, "c": -values, "flat": torch.zeros_like(values)}, chosen)
    assert {name: round(score.value, 6) for name, score in scores.items()} == {
        "agreement/a/b": 1.0, "agreement/a/c": -1.0, "agreement/b/c": -1.0,
    }  # fmt: skip


def test_planted_causes_are_counted_without_the_token_that_asks():
    from dataclasses import replace

    chosen = predictions(sums(), 2)
    causes = torch.zeros(2, TIME, dtype=torch.bool)
    causes[:, [2, 5]] = True
    chosen = replace(chosen, causes=causes)
    values = torch.zeros(2, TIME)
    values[:, -1], values[0, 2], values[0, 5], values[1, 3], values[1, 5] = 9.0, 2.0, 1.0, 2.0, 1.0
    scores = planted_scores({"m": values}, chosen)
    assert scores["planted_first/m"].value == 0.5 and scores["planted_found/m"].value == 0.75
    assert scores["planted_first/random"].value == pytest.approx(2 / (TIME - 1))
    assert planted_scores({"m": values}, replace(chosen, causes=None)) == {}
