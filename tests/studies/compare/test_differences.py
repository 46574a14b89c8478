"""Arms at an equal quantity: interpolation is exact on power laws, and claims are decided at what is really equal."""

from dataclasses import replace

import pytest

from kleiber.studies.compare.arms import Arm
from kleiber.studies.compare.decision import Claim, Decision
from kleiber.studies.compare.differences import Result, interpolate, judge, more_seeds_of_all, pair
from kleiber.types.score import Score


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
    sides = pair(ladder("a", [1.0, 2.0, 4.0]), ladder("b", [1.0, 2.0, 4.1]), "tokens")
    assert [arm.facts["tokens"] for arm in sides.arms] == [4.0, 4.1]
    assert sides.ratio == pytest.approx(4.0 / 4.1) and sides.interpolated == sides.why == ""


def test_arms_that_meet_early_are_compared_later_by_interpolation():
    sides = pair(ladder("a", [100.0, 800.0]), ladder("b", [104.0, 1200.0]), "seconds")
    assert sides.interpolated == "b" and [arm.facts["train_s"] for arm in sides.arms] == [800.0, 104.0, 1200.0]
    assert sides.theirs == pytest.approx(sides.ours)


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


def test_another_measure_is_taken_where_the_arms_meet_and_interpolated_as_the_loss_is():
    def with_loads(arms):
        return [replace(arm, measures_at_best={"moe/dead": {0: arm.facts["tokens"] ** 2}}) for arm in arms]

    ours, theirs = with_loads(ladder("a", [1.0, 2.0])), with_loads(ladder("b", [1.0, 4.0]))
    assert pair(ours, theirs[:1], "tokens", "moe/dead").ours == {0: 1.0}
    later = pair(ours, theirs, "tokens", "moe/dead")
    assert later.ours == {0: 4.0} and later.theirs == pytest.approx({0: 4.0})
    slow = with_loads(ladder("c", [2.0], speed=0.7))
    assert pair(slow, theirs, "seconds", "moe/dead").theirs == pytest.approx({0: (2.0 / 0.7) ** 2})
    assert pair(ours, ladder("b", [1.0]), "tokens", "moe/dead").theirs == {}


LEVEL = 0.9


@pytest.mark.parametrize("equal", ["tokens", "flops", "seconds", "params", "memory"])
def test_swapping_the_arms_of_a_claim_turns_its_sign_and_keeps_its_decision(equal):
    ours, theirs = (tuned(name, scale, 1.0) for name, scale in (("a", 2.0), ("b", 1.9)))
    ladders = {"a": ours, "b": theirs}
    forth = judge(Claim("a", "b", "higher", equal=equal), ladders, LEVEL, "")
    back = judge(Claim("b", "a", "lower", equal=equal), ladders, LEVEL, "")
    assert forth.decision == back.decision == Decision.SUPPORTED
    assert forth.estimate is not None and back.estimate is not None
    assert forth.estimate.value == pytest.approx(-back.estimate.value)
    assert (forth.estimate.lo, forth.estimate.hi) == pytest.approx((-back.estimate.hi, -back.estimate.lo))


def tuned(name, scale, speed, power=-0.3):
    """An arm at two budgets with losses at five rates, best in the middle."""
    rates = [0.005, 0.01, 0.02, 0.04, 0.08]
    arms = []
    for arm in ladder(name, [1.0, 2.0], speed=speed, scale=scale, power=power):
        losses = {lr: {seed: loss + abs(lr - 0.02) for seed, loss in arm.best_values.items()} for lr in rates}
        arms.append(Arm(name, losses, 0.02, "", arm.facts))
    return arms


def test_a_claim_is_decided_at_its_own_quantity():
    """At equal tokens a slow arm is better, at equal time it is worse."""
    slow, fast = tuned("slow", 1.9, 0.6), tuned("fast", 2.0, 1.0)
    for arm in (*slow, *fast):
        seconds, tokens = arm.facts["train_s"], arm.facts["tokens"]
        level = 1.9 if arm.name == "slow" else 2.0
        arm.values_by_rate[0.02].update({seed: level * tokens**-0.3 * (1 + 0.1 * seed) for seed in range(3)})
        assert seconds == pytest.approx(tokens / (0.6 if arm.name == "slow" else 1.0))
    ladders = {"slow": slow, "fast": fast}
    decisions = [
        judge(Claim("slow", "fast", equal=equal), ladders, LEVEL, "").decision for equal in ("tokens", "seconds")
    ]
    assert decisions == [Decision.SUPPORTED, Decision.CONTRADICTED]


@pytest.mark.parametrize(
    ("claim", "why_not", "reason"),
    [
        (Claim("a", "gone"), "", "no finished run of gone"), (Claim("a", "rough"), "", "rough is not tuned"),
        (Claim("a", "b"), "3 of 9 runs", "3 of 9"), (Claim("a", "b", measure="moe/dead"), "", "moe/dead"),
        (Claim("a", "big", equal="params"), "", "factor of 0.10"),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_has_its_reason(claim, why_not, reason):
    big = [Arm("big", arm.values_by_rate, 0.02, "", {**arm.facts, "params": 1e6}) for arm in tuned("big", 2.0, 1.0)]
    rough = [Arm("rough", arm.values_by_rate, 0.02, "2 rates", arm.facts) for arm in tuned("rough", 2.0, 1.0)]
    ladders = {"a": tuned("a", 2.0, 1.0), "b": tuned("b", 1.9, 1.0), "big": big, "rough": rough}
    result = judge(claim, ladders, LEVEL, why_not)
    assert result.decision == Decision.NOT_TESTED and reason in result.why
    assert result.to_json()["decision"] == "not tested" and result.to_json()["measure"] == claim.measure


@pytest.mark.parametrize(("needed", "all_of_them"), [([3, 5], 5), ([3, None], None), ([], None), ([4], 4)])
def test_more_seeds_are_those_that_decide_every_claim(needed, all_of_them):
    claim, loss = Claim("a", "b"), Score(1.0, label="loss")
    undecided = [Result(claim, loss, None, Decision.UNDECIDED, "", True, seeds) for seeds in needed]
    assert more_seeds_of_all([*undecided, Result(claim, loss, None, Decision.SUPPORTED, "", True)]) == all_of_them
