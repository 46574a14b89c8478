"""Arms at equal tokens, FLOPs or time: interpolation is exact on power laws, and unequal quantities are told."""

import pytest

from kleiber.studies.compare.arms import Arm
from kleiber.studies.compare.equal import interpolate, pair


def ladder(name, budgets, speed=1.0, per_token=6.0, scale=2.0, power=-0.3, wrong="", **facts):
    """An arm whose loss is scale x seconds ** power, at several numbers of tokens."""
    arms = []
    for tokens in budgets:
        seconds = tokens / speed
        losses = {0.01: {seed: scale * seconds**power * (1 + 0.1 * seed) for seed in range(3)}}
        measured = {"tokens": tokens, "flops": per_token * tokens, "train_s": seconds, "params": 1e5, "memory": 4e5}
        arms.append(Arm(name, losses, 0.01, wrong, {**measured, **facts}))
    return arms


@pytest.mark.parametrize("at", [1.0, 1.5, 2.0, 3.7, 8.0])
def test_interpolation_is_exact_on_a_power_law(at):
    found = interpolate(ladder("a", [1.0, 2.0, 8.0]), "train_s", at)
    assert found is not None
    assert found[0] == pytest.approx({seed: 2.0 * at**-0.3 * (1 + 0.1 * seed) for seed in range(3)})


def test_nothing_is_extrapolated():
    assert interpolate(ladder("a", [1.0, 2.0]), "train_s", 0.9) is None
    assert interpolate(ladder("a", [1.0, 2.0]), "train_s", 2.1) is None


def test_a_measure_below_zero_is_interpolated_linearly():
    arms = [Arm("a", {0.01: {0: value}}, 0.01, "", {"tokens": tokens}) for tokens, value in ((1.0, -1.0), (4.0, 3.0))]
    found = interpolate(arms, "tokens", 2.0)
    assert found is not None and found[0] == pytest.approx({0: 1.0})


def test_arms_that_meet_are_taken_where_they_trained_longest():
    sides = pair(ladder("a", [1.0, 2.0, 4.0]), ladder("b", [1.0, 2.0, 8.0]), "tokens")
    assert sides.arms[0].facts["tokens"] == sides.arms[1].facts["tokens"] == 2.0
    assert sides.ratio == 1.0 and sides.interpolated == sides.why == ""


def test_a_slower_arm_meets_the_other_at_equal_time_by_interpolation():
    fast, slow = ladder("fast", [1.0, 2.0, 4.0], speed=1.0), ladder("slow", [1.0, 2.0], speed=0.7)
    sides = pair(slow, fast, "seconds")
    assert sides.interpolated == "fast" and sides.why == ""
    seconds = 2.0 / 0.7
    assert sides.theirs == pytest.approx({seed: 2.0 * seconds**-0.3 * (1 + 0.1 * seed) for seed in range(3)})
    back = pair(fast, slow, "seconds")
    assert back.interpolated == "fast" and back.ours == pytest.approx(sides.theirs)


@pytest.mark.parametrize("equal", ["seconds", "params", "memory"])
def test_what_is_not_equal_is_told_with_its_factor(equal):
    other = ladder("b", [1.0], speed=0.5, params=2e5, memory=8e5)
    sides = pair(ladder("a", [1.0]), other, equal)
    assert sides.why and not sides.ours and sides.ratio == pytest.approx(0.5)


def test_an_untuned_arm_and_a_quantity_that_was_not_measured_are_told():
    assert "b" in pair(ladder("a", [1.0]), ladder("b", [1.0], wrong="2 rates"), "tokens").untuned
    untimed = [Arm("b", {0.01: {0: 1.0}}, 0.01, "", {"tokens": 1.0})]
    assert pair(ladder("a", [1.0]), untimed, "seconds").why
