"""Decisions: antisymmetric, free of what seeds share, and wrong no more often than stated."""

from dataclasses import replace

import numpy as np
import pytest

from kleiber.inference.contrasts import Contrast, separate_spread
from kleiber.studies.decision import (
    Criterion,
    Decision,
    Estimate,
    estimate_around,
    gaps_by_seed,
    half_width,
    level_of_each,
    mean_estimate,
    more_seeds_needed,
    paired_difference,
)

OPPOSITE = {"lower": "higher", "higher": "lower", "not_lower": "not_higher", "not_higher": "not_lower"}


def draws(seed, n=5):
    rng = np.random.default_rng(seed)
    return {i: float(x) for i, x in enumerate(rng.normal(3.0, 0.1, n))}


@pytest.mark.parametrize("seed", range(5))
def test_a_less_b_is_minus_b_less_a(seed):
    a, b = draws(seed), draws(seed + 100)
    forth, back = paired_difference(a, b, 0.9, "nats"), paired_difference(b, a, 0.9, "nats")
    assert forth is not None and back is not None and forth.hi is not None and back.lo is not None
    assert (forth.value, forth.lo, forth.hi) == pytest.approx((-back.value, -back.hi, -back.lo))
    for direction in OPPOSITE:
        assert Criterion(direction).decide(forth) == Criterion(OPPOSITE[direction]).decide(back)


def test_what_a_seed_adds_to_both_arms_changes_nothing():
    a, b = draws(1), draws(2)
    shift = draws(3)
    shifted = paired_difference({s: a[s] + shift[s] for s in a}, {s: b[s] + shift[s] for s in b}, 0.9, "nats")
    plain = paired_difference(a, b, 0.9, "nats")
    assert shifted is not None and plain is not None
    assert (shifted.value, shifted.lo, shifted.hi) == pytest.approx((plain.value, plain.lo, plain.hi))


@pytest.mark.parametrize(
    ("direction", "margin", "lo", "hi", "decision"),
    [
        ("lower", 0.0, -0.2, -0.1, "supported"), ("lower", 0.0, 0.1, 0.2, "contradicted"),
        ("lower", 0.0, -0.1, 0.1, "undecided"), ("lower", 0.15, -0.2, -0.1, "undecided"),
        ("lower", 0.05, -0.2, -0.1, "supported"), ("lower", 0.3, -0.2, -0.1, "contradicted"),
        ("higher", 0.0, 0.1, 0.2, "supported"), ("higher", 0.0, -0.2, -0.1, "contradicted"),
        ("within", 0.3, -0.2, 0.1, "supported"), ("within", 0.05, 0.1, 0.2, "contradicted"),
        ("within", 0.15, 0.1, 0.2, "undecided"),
        ("not_higher", 0.05, -0.2, 0.04, "supported"), ("not_higher", 0.05, 0.06, 0.2, "contradicted"),
        ("not_higher", 0.05, 0.0, 0.1, "undecided"), ("not_lower", 0.05, -0.04, 0.2, "supported"),
        ("not_lower", 0.05, -0.2, -0.06, "contradicted"), ("not_lower", 0.05, -0.1, 0.0, "undecided"),
    ],
)  # fmt: skip
def test_an_interval_decides_a_claim(direction, margin, lo, hi, decision):
    estimate = Estimate((lo + hi) / 2, lo, hi, 3, "nats")
    assert Criterion(direction, margin).decide(estimate) == decision


def test_the_bound_of_a_claim_is_on_its_side_of_0():
    bounds = {"lower": -0.2, "higher": 0.2, "not_higher": 0.2, "not_lower": -0.2, "within": None}
    assert {direction: Criterion(direction, 0.2).bound for direction in bounds} == bounds
    assert Criterion("within", 0.2).bounds == (-0.2, 0.2) and Criterion("higher", 0.2).bounds == (None, 0.2)


def test_without_an_interval_nothing_is_tested():
    assert Criterion().decide(None) == Decision.NOT_TESTED
    assert Criterion().decide(paired_difference({0: 1.0}, {0: 2.0}, 0.9, "nats")) == Decision.NOT_TESTED
    assert paired_difference({0: 1.0}, {1: 2.0}, 0.9, "nats") is None


@pytest.mark.parametrize("wrong", [{"direction": "better"}, {"margin": -1.0}, {"direction": "within"}])
def test_a_criterion_that_says_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))[:6]):
        Criterion(**wrong)


def test_every_look_and_claim_spends_an_equal_part_of_the_error_rate():
    assert level_of_each(0.9, 1, 1) == pytest.approx(0.9)
    assert level_of_each(0.9, 2, 5) == pytest.approx(0.99)


def test_the_seeds_that_are_said_to_be_needed_are_the_fewest_that_decide():
    gaps = [-0.02, -0.01, 0.004]
    criterion, estimate = Criterion("lower"), mean_estimate(gaps, 0.9, "nats")
    spread = separate_spread(Contrast({"a": 1.0, "b": -1.0}, gaps))
    more = more_seeds_needed(estimate, spread, criterion, 0.9)
    assert more is not None and more > 0
    mean = np.mean(gaps)
    widths = [half_width(gaps, len(gaps) + extra, 0.9) for extra in (more - 1, more)]
    assert mean + widths[1] < 0 <= mean + widths[0]
    assert more_seeds_needed(replace(estimate, value=0.0), spread, criterion, 0.9) is None


@pytest.mark.slow
def test_equal_arms_are_told_apart_no_more_often_than_stated_however_often_one_looks():
    """A quick version of benchmarks/false_winners.py: paired seeds, a look after each of 3, 4, ... 7 seeds."""
    rng = np.random.default_rng(0)
    winners = {1: 0, 5: 0}
    for _ in range(1000):
        a, b = ({seed: float(x) for seed, x in enumerate(rng.normal(0, 1, 7))} for _ in "ab")
        for looks in winners:
            level = level_of_each(0.9, 1, looks)
            for n in range(3, 3 + looks):
                first = [{seed: arm[seed] for seed in range(n)} for arm in (a, b)]
                estimate = paired_difference(*first, level, "nats")
                if Criterion().decide(estimate) in (Decision.SUPPORTED, Decision.CONTRADICTED):
                    winners[looks] += 1
                    break
    assert 70 < winners[1] < 130 and winners[5] < 115


def test_gaps_are_in_order_of_the_seed():
    assert gaps_by_seed({1: 2.0, 0: 1.0}, {0: 0.5, 1: 0.0, 2: 9.0}) == [0.5, 2.0]


def test_an_estimate_around_a_value_has_ends_at_the_half_width_or_none():
    estimate = estimate_around(1.0, 0.25, 3, "nats")
    assert (estimate.lo, estimate.hi) == (0.75, 1.25) and "[+0.7500, +1.2500]" in estimate.text()
    alone = estimate_around(1.0, float("nan"), 1, "nats")
    assert alone.lo is None and alone.hi is None and "[" not in alone.text()
