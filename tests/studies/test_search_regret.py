"""The expected regret: of a choice among finalists, and of trials that halving stopped too early."""

import math

import numpy as np
import pytest

from kleiber.studies.search import format_total, halving_regret, regret_text, selection_regret
from kleiber.studies.search_trials import Trials


def test_the_regret_of_a_clear_choice_is_nothing_and_of_equal_finalists_that_of_a_guess():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=4)
    clear = {"a": dict(enumerate(1 + shared)), "b": dict(enumerate(2 + shared + 0.01 * rng.normal(size=4)))}
    assert selection_regret(clear, "a") == pytest.approx(0, abs=1e-6)
    assert selection_regret(clear, "b") == pytest.approx(1, abs=0.05)
    equal = {name: dict(enumerate(shared + 0.1 * rng.normal(size=4))) for name in "abc"}
    best = min(equal, key=lambda name: np.mean(list(equal[name].values())))
    assert 0 < selection_regret(equal, best) < 0.1


def searched(slope: float, kept: int = 6, noise: float = 0.0) -> Trials:
    """Twenty trials with a last loss that is a line in the first; the first `kept` and two controls have both."""
    rng = np.random.default_rng(0)
    first = {f"trial{n}": 2 + 0.01 * n for n in range(20)}
    last = {name: 1 + slope * (loss - 2) + noise * rng.normal() for name, loss in first.items()}
    both = {name: last[name] for name in [*list(first)[:kept], "trial12", "trial17"]}
    held_out = {"trial0": {1: 1.0, 2: 1.01}, "trial1": {1: 1.02, 2: 1.03}}
    return Trials({name: {} for name in first}, {1e5: first, 4e5: both}, held_out)


def test_halving_costs_nothing_where_early_losses_are_a_guide_and_the_gap_where_they_mislead():
    assert halving_regret(searched(1.0)) == pytest.approx(0, abs=1e-9)
    assert halving_regret(searched(-1.0)) == pytest.approx(0.02, abs=1e-6)  # of trial19 against trial17
    assert 0 < halving_regret(searched(0.2, noise=0.02)) < 0.06
    few = searched(1.0, kept=1)
    assert halving_regret(few) == math.inf and format_total({"a": 0.01, "halving": math.inf}) == "at least 0.0100"
    assert halving_regret(Trials(few.values, {1e5: few.searched[1e5]}, few.held_out)) == 0


def test_a_trial_that_diverged_at_a_later_length_was_not_stopped_by_halving():
    trials = searched(1.0)
    first, last = trials.searched.values()
    middle = {name: first[name] for name in list(first)[:12]}
    stopped = {name: loss for name, loss in first.items() if name not in ("trial18", "trial19")}
    diverged = Trials(
        trials.values,
        {1e5: {**stopped, "best1": 1.0, "best2": 1.0}, 2e5: {**middle, "best1": math.inf, "best2": 1.0},
         4e5: {**last, "best2": math.inf}},
        trials.held_out,
    )  # fmt: skip
    assert halving_regret(diverged) == pytest.approx(0, abs=1e-9)


def test_the_gain_of_more_trials_has_its_length():
    regret = {"selection": 0.001, "halving": 0.002, "search": 0.003}
    assert "about 0.0030, after 250,000 tokens, that" in regret_text(regret, [2.5e5, 1e6])
    assert "about 0.0030 that" in regret_text(regret, [1e6])
