"""Trends recover planted slopes, and the size multiplier a planted one."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.compare.arms import Arm
from kleiber.studies.compare.differences import Differences
from kleiber.studies.compare.tables import (
    at_common_budget,
    multiplier_sentence,
    multiplier_table,
    tokens_table,
    trends,
)
from kleiber.types.score import Score

TOKENS = (1e6, 2e6, 4e6, 8e6)


def ladder(name, loss, *, active=1e5, speed=1e4, tokens=TOKENS, core=None, wrong=""):
    """An arm at one rate; `loss` is a function of the tokens and the seed."""
    facts = {"active": active, "core": core or active, "params": active}
    return [
        Arm(
            name, {0.01: {seed: loss(at, seed) for seed in range(3)}}, 0.01, wrong,
            {**facts, "tokens": at, "flops": 6 * active * at, "speed": speed, "train_s": at / speed},
        )
        for at in tokens
    ]  # fmt: skip


def doublings(tokens):
    return math.log2(tokens / 4e6)


@pytest.mark.parametrize("slope", [-0.02, 0.0, 0.013])
def test_the_trend_over_tokens_is_the_planted_slope_whatever_the_seeds_share(slope):
    noise = np.random.default_rng(0).normal(0, 1, 3)
    ladders = {
        "a": ladder("a", lambda at, seed: 3.0 - 0.08 + slope * doublings(at) + noise[seed]),
        "b": ladder("b", lambda at, seed: 3.0 - 0.3 * doublings(at) ** 2 + noise[seed]),
    }
    for arm, level in zip(ladders["a"], (-0.3 * doublings(at) ** 2 for at in TOKENS), strict=True):
        arm.values_by_rate[0.01].update({seed: loss + level for seed, loss in arm.best_values.items()})
    (row,) = trends([("a", "b")], ladders, "loss", 0.9)
    assert (row["value"], row["lo"], row["hi"]) == pytest.approx((slope, slope, slope), abs=1e-9) and row["n"] == 3


def test_the_trend_over_sizes_is_the_planted_change_of_pairs_without_a_common_arm():
    ladders = {
        f"{kind}{size}": ladder(f"{kind}{size}", lambda at, seed, gain=gain: 3.0 - gain + seed, active=active)
        for size, active, gains in (("", 1e5, (0.08, 0.0)), ("_96", 2e5, (0.12, 0.0)))
        for kind, gain in zip(("moe", "dense"), gains, strict=True)
    }
    rows = trends([("moe_96", "dense_96"), ("moe", "dense")], ladders, "loss", 0.9)
    assert [row["value"] for row in rows] == pytest.approx([0.0, 0.0, -0.04], abs=1e-9)
    assert (rows[2]["arm"], rows[2]["over"]) == ("moe_96", "from moe - dense")
    assert len(trends([("moe", "dense"), ("moe_96", "dense")], ladders, "loss", 0.9)) == 2
    assert len(trends([("dense_96", "dense"), ("moe", "dense_96")], ladders, "loss", 0.9)) == 2
    equal = {name: ladder(name, lambda at, seed: 3.0) for name in ladders}
    assert len(trends([("moe_96", "dense_96"), ("moe", "dense")], equal, "loss", 0.9)) == 2


def test_one_budget_has_no_trend_and_no_table_over_tokens():
    ladders = {name: ladder(name, lambda at, seed: 3.0, tokens=(1e6,)) for name in "ab"}
    assert trends([("a", "b")], ladders, "loss", 0.9) == []
    assert tokens_table([("a", "b")], Differences(ladders, "loss", 0.9, "moderated")) == []


def test_a_pair_is_compared_at_each_number_of_tokens_and_in_the_time_of_the_slower_arm():
    def power(at, seed):
        return 3.0 * (at / 4e6) ** -0.1 * (1 + 0.01 * seed)

    slow = ladder("slow", lambda at, seed: 0.97 * power(at, seed), speed=1e4 / math.sqrt(2))
    ladders = {"slow": slow, "fast": ladder("fast", power)}
    table = tokens_table([("slow", "fast")], Differences(ladders, "loss", 0.9, "moderated"))
    assert [row["tokens"] for row in table] == list(TOKENS)
    assert [row["ratio"] for row in table] == pytest.approx([math.sqrt(2)] * 4) and table[0]["lower on"] == 3
    for row in table[:3]:
        levels = [power(row["tokens"], seed) for seed in range(3)]
        assert row["value"] == pytest.approx(np.mean([-0.03 * level for level in levels]))
        assert row["value at equal time"] == pytest.approx(np.mean(levels) * (0.97 - math.sqrt(2) ** -0.1))
    assert table[3]["value at equal time"] is None and "1.41" in table[3]["note"]


@pytest.mark.parametrize("times", [1.5, 0.8, 3.0])
def test_the_multiplier_is_the_planted_one(times):
    sizes = {"s": 0.5e5, "m": 1e5, "l": 2e5}
    ladders = {
        name: ladder(name, lambda at, seed, core=core: 3.0 - 0.2 * math.log(core) + seed, core=core)
        for name, core in sizes.items()
    }
    ladders["moe"] = ladder("moe", lambda at, seed: 3.0 - 0.2 * math.log(times * 1e5) + seed, core=1e5)
    rows, warnings = multiplier_table("moe", [*sizes, "gone"], ladders, 0.9)
    (row,) = rows
    assert (row["value"], row["lo"], row["hi"]) == pytest.approx((times, times, times))
    sentence = multiplier_sentence(row, Score(1.0, label="loss"))
    assert row["tokens"] == 8e6 and row["tuned"] and f"{times:.2f}" in sentence
    assert [warning["code"] for warning in warnings] == (["multiplier"] if times > 2 else [])


def test_the_multiplier_of_a_score_is_the_planted_one_and_needs_one_that_rises():
    def scores(sign):
        return {
            name: [
                replace(arm, higher_is_better=True, measure="val/x/accuracy")
                for arm in ladder(name, lambda at, seed, core=core: 0.5 + sign * 0.1 * math.log(core / 1e5), core=core)
            ]
            for name, core in (("s", 0.5e5), ("l", 2e5), ("moe", 1e5))
        }

    rows, warnings = multiplier_table("moe", ["s", "l"], scores(1), 0.9)
    assert rows[0]["value"] == pytest.approx(1.0) and warnings == []
    measure = Score(1.0, label="accuracy on x")
    assert "the accuracy on x of mixture of experts, a dense model needs" in multiplier_sentence(rows[0], measure)
    rows, warnings = multiplier_table("moe", ["s", "l"], scores(-1), 0.9)
    assert rows == [] and "val/x/accuracy does not rise" in warnings[0]["text"]


def test_there_is_no_multiplier_at_unequal_tokens():
    """A budget that grows with the size would let the larger sizes win by their tokens."""
    sizes = {"s": (0.5e5, 1e6), "m": (1e5, 2e6), "l": (2e5, 4e6), "moe": (1e5, 2e6)}
    ladders = {
        name: ladder(name, lambda at, seed, core=core: 3.0 - 0.2 * math.log(core), core=core, tokens=(tokens,))
        for name, (core, tokens) in sizes.items()
    }
    rows, warnings = multiplier_table("moe", ["s", "m", "l"], ladders, 0.9)
    assert rows == [] and [entry["code"] for entry in warnings] == ["multiplier"]
    assert "share no number of training tokens" in warnings[0]["text"]


def test_there_is_no_multiplier_for_one_size_or_where_the_loss_does_not_fall():
    arms = {name: ladder(name, lambda at, seed: 3.0, core=1e5) for name in ("a", "b", "moe")}
    assert multiplier_table("moe", ["a", "b"], arms, 0.9) == ([], [])
    arms["b"] = ladder("b", lambda at, seed: 3.1, core=2e5)
    rows, warnings = multiplier_table("moe", ["a", "b"], arms, 0.9)
    assert rows == [] and warnings[0]["code"] == "multiplier"


def test_there_is_no_multiplier_where_the_loss_of_one_seed_does_not_fall_with_the_size():
    falling = {name: {0: 3.0 - 0.1 * n, 1: 3.0 - 0.1 * n, 2: 3.0 + 0.1 * n} for n, name in enumerate("ab")}
    arms = {
        name: ladder(name, lambda at, seed, name=name: falling[name][seed], core=core)
        for name, core in (("a", 1e5), ("b", 2e5))
    }
    arms["moe"] = ladder("moe", lambda at, seed: 2.95, core=1e5)
    rows, warnings = multiplier_table("moe", ["a", "b"], arms, 0.9)
    assert rows == [] and warnings[0]["code"] == "multiplier"


def test_arms_are_shown_at_the_most_tokens_that_all_have():
    ladders = {"a": ladder("a", lambda at, seed: 3.0), "b": ladder("b", lambda at, seed: 3.0, tokens=TOKENS[:2])}
    assert {arm.facts["tokens"] for arm in at_common_budget(ladders).values()} == {2e6}
    ladders["c"] = ladder("c", lambda at, seed: 3.0, tokens=(3e6,))
    assert [arm.facts["tokens"] for arm in at_common_budget(ladders).values()] == [8e6, 2e6, 3e6]
