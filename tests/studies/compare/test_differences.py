"""Arms at an equal quantity: interpolation is exact on power laws, and claims are decided at what is really equal."""

from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.claims import Claim, decide_together
from kleiber.studies.compare.arms import Arm, Unready
from kleiber.studies.compare.differences import interpolate, pair, question
from kleiber.studies.decision import Decision


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
    untuned = pair(ladder("a", [1.0]), ladder("b", [1.0], wrong="2 rates"), "tokens").untuned
    assert untuned is not None and untuned.name == "b"
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


def claim(arm, against, direction="lower", **keys):
    return Claim(of={"arm": arm}, against={"arm": against}, direction=direction, **keys)


def judge(asked, ladders, waiting=""):
    (result,) = decide_together([question(asked, ladders, Unready(waiting))], LEVEL)
    return result


@pytest.mark.parametrize("equal", ["tokens", "flops", "seconds", "params", "memory"])
def test_swapping_the_arms_of_a_claim_turns_its_sign_and_keeps_its_decision(equal):
    ours, theirs = (tuned(name, scale, 1.0) for name, scale in (("a", 2.0), ("b", 1.9)))
    ladders = {"a": ours, "b": theirs}
    forth = judge(claim("a", "b", "higher", equal=equal), ladders)
    back = judge(claim("b", "a", "lower", equal=equal), ladders)
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
    decisions = [judge(claim("slow", "fast", equal=equal), ladders).decision for equal in ("tokens", "seconds")]
    assert decisions == [Decision.SUPPORTED, Decision.CONTRADICTED]


@pytest.mark.parametrize(
    ("asked", "waiting", "reason"),
    [
        (claim("a", "gone"), "", "no finished run of gone"), (claim("a", "rough"), "", "for rough, 2 rates"),
        (claim("a", "b"), "3 of 9 runs", "3 of 9"), (claim("a", "b", measure="moe/dead"), "", "moe/dead"),
        (claim("a", "big", equal="params"), "", "factor of 0.10"),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_has_its_reason(asked, waiting, reason):
    big = [Arm("big", arm.values_by_rate, 0.02, "", {**arm.facts, "params": 1e6}) for arm in tuned("big", 2.0, 1.0)]
    rough = [Arm("rough", arm.values_by_rate, 0.02, "2 rates", arm.facts) for arm in tuned("rough", 2.0, 1.0)]
    ladders = {"a": tuned("a", 2.0, 1.0), "b": tuned("b", 1.9, 1.0), "big": big, "rough": rough}
    result = judge(asked, ladders, waiting)
    assert result.decision == Decision.NOT_TESTED and reason in result.why
    assert result.to_json()["decision"] == "not tested" and result.to_json()["measure"] == asked.measure


def test_an_interaction_is_the_difference_of_two_differences_of_arms():
    """At width 2 the change is worth 0.3 of a power law's factor, at width 1 it is worth 0.1."""
    scales = {"a, width=1": 1.9, "b, width=1": 2.0, "a, width=2": 1.7, "b, width=2": 2.0}
    ladders = {name: tuned(name, scale, 1.0) for name, scale in scales.items()}
    asked = Claim(of={"arm": "a", "width": 2}, against={"arm": "b"}, than={"width": 1}, equal="tokens")
    result = judge(asked, ladders)
    at = ladders["b, width=1"][-1].facts["tokens"] ** -0.3
    expected = [((1.7 - 2.0) - (1.9 - 2.0)) * at * (1 + 0.1 * seed) for seed in range(3)]
    assert [*result.question.values] == pytest.approx(expected) and result.decision == Decision.SUPPORTED


def test_a_level_and_a_change_from_the_start_are_claims_about_one_arm():
    arms = [
        replace(arm, measures_at_best={"score": dict.fromkeys(range(3), 0.9), "start:score": {0: 0.5, 1: 0.4, 2: 0.45}})
        for arm in tuned("a", 2.0, 1.0)
    ]
    level = Claim(of={"arm": "a"}, measure="score", less=0.8, direction="higher", equal="tokens")
    assert judge(level, {"a": arms}).estimate.value == pytest.approx(0.1)
    change = Claim(of={"arm": "a"}, against={"moment": "start"}, measure="score", direction="higher", equal="tokens")
    result = judge(change, {"a": arms})
    assert [*result.question.values] == pytest.approx([0.4, 0.5, 0.45]) and result.decision == Decision.SUPPORTED


def test_arms_are_compared_at_vertices_only_where_all_have_one():
    def arm(name, best, cliff=0.0):
        rates = 0.01 * 2.0 ** np.arange(-2, 3)
        noise = 0.01 * np.random.default_rng(len(name)).normal(size=(5, 3))
        table = 3 + 0.05 * np.log2(rates / best)[:, None] ** 2 + noise
        table[-1] += cliff
        values = {lr: dict(enumerate(row)) for lr, row in zip(rates.tolist(), table.tolist(), strict=True)}
        return Arm(name, values, 0.01, "", {"tokens": 1.0})

    on, off, steep = arm("a", 0.01), arm("bb", 0.014), arm("ccc", 0.014, cliff=2.0)
    assert on.optimum.fitted and off.optimum.fitted and not steep.optimum.fitted
    at_vertices, at_cells = pair([off], [on], "tokens"), pair([off], [steep], "tokens")
    assert sum(at_vertices.ours.values()) / 3 == pytest.approx(off.optimum.value)
    assert at_cells.ours == off.best_values and at_cells.theirs == steep.best_values
    ladders = {each.name: [each] for each in (on, off, steep)}
    points = [question(claim(name, "a"), ladders, Unready()).point for name in ("bb", "ccc")]
    assert points == ["vertex of a parabola in log rate", "best rate"]
    assert question(claim("bb", "ccc"), ladders, Unready()).values == pytest.approx(
        [off.best_values[seed] - steep.best_values[seed] for seed in range(3)]
    )
