"""The ladder of an ablation: equal arms are rarely told apart, and predictions are compared by seed."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.ablation_ladder import (
    Ladder,
    check,
    compute_gain,
    crossings,
    ladder_of,
    losses_of,
    predict,
    read_scales,
    sign,
)

from .ablation_runs import LRS, TOKENS, copied, with_divergence, write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ablation"), gap=lambda x: -0.02 + 0.005 * x)


def simulated(rng, beta=(0.0, 0.0), seeds=3, scales=9) -> Ladder:
    """Two arms at five rates: noise of a seed over all scales, of a rate's seed over all scales, and of a run."""
    compute = np.geomspace(1e12, 1e14, scales)
    x = np.log10(compute / compute.max())
    arms = []
    for shift in (0.0, beta[0] + beta[1] * x):
        loss = (-0.05 * x + shift)[None, :, None] + 0.005 * (np.arange(5) - 2.2) ** 2
        loss = loss + 0.007 * rng.normal(size=(seeds, 1, 5)) + 0.01 * rng.normal(size=(seeds, scales, 5))
        arms.append(loss[:, np.arange(scales), loss.mean(0).argmin(1)])
    return Ladder(compute, arms[1] - arms[0], arms[0], range(seeds))


def test_claims_of_several_changes_are_decided_at_one_level():
    """A gap whose interval at 90 % just excludes 0 decides one claim, but not one of six."""
    rng = np.random.default_rng(3)
    ladders = [simulated(rng, (-0.012, 0.0)) for _ in range(200)]
    decided = [[predict(ladder, 10.0, level).hi < 0 for ladder in ladders] for level in (0.9, 1 - 0.1 / 6)]
    assert sum(decided[1]) < sum(decided[0])


@pytest.mark.slow
def test_a_prediction_is_compared_with_the_gap_of_the_same_seed(runs):
    scales = read_scales(runs, "plain", "qk_norm")
    ladder = ladder_of(scales[:-1])
    shifted = replace(scales[-1], changed={seed: loss + 0.1 * seed for seed, loss in scales[-1].changed.items()})
    assert check(ladder, shifted, 0.9)["holds"] is True and check(ladder, shifted, 0.9)["seeds"] == 3
    alone = replace(scales[-1], changed={0: scales[-1].changed[0]})
    assert check(ladder, alone, 0.9)["holds"] is None and check(ladder, alone, 0.9)["seeds"] == 1


def test_losses_are_read_by_place_arm_rate_and_seed(runs):
    losses, flops = losses_of(runs)
    assert set(losses) == {(width, tokens) for width in (32, 64, 128) for tokens in TOKENS}
    assert set(losses[64, 1e6]["plain"]) == set(LRS) and set(losses[64, 1e6]["plain"][0.02]) == {0, 1, 2}
    assert flops["plain", 64, 1e6] == 6 * 64**2 * 1e6


def plain_ladder(slopes, gaps) -> Ladder:
    """Three scales of a plain arm with a slope a decade for each seed, and the gap of each seed at every scale."""
    x = np.array([-2.0, -1.0, 0.0])
    gaps = np.repeat(np.array(gaps)[:, None], 3, axis=1)
    return Ladder(10.0**x, gaps, np.array(slopes)[:, None] * x, range(len(slopes)))


def test_a_change_has_no_worth_in_compute_where_the_plain_arm_does_not_improve():
    assert compute_gain(plain_ladder([-1e-4] * 3, [-0.05] * 3), 0.9) is None, "500 decades"
    assert compute_gain(plain_ladder([0.02, 0.021, 0.019], [-0.05] * 3), 0.9) is None
    assert compute_gain(plain_ladder([-0.05, 0.03, -0.01], [-0.05] * 3), 0.9) is None


def test_the_worth_in_compute_has_the_spread_of_the_slopes():
    gain = compute_gain(plain_ladder([-0.05, -0.06, -0.04], [-0.02] * 3), 0.9)
    assert gain.value == pytest.approx(10**0.4) and gain.lo < 0.9 * gain.value and gain.hi > 1.1 * gain.value
    even = compute_gain(plain_ladder([-0.05, -0.06, -0.04], [-0.02, -0.024, -0.016]), 0.9)  # equal ratios
    assert even.lo == pytest.approx(even.value) and even.hi == pytest.approx(even.value)


@pytest.mark.parametrize("name", ["a", "z"])
@pytest.mark.parametrize(("key", "value"), [("objective", {"z_loss": 1e-3}), ("batch", {"tokens": 512})])
def test_two_runs_at_one_place_are_refused_whichever_is_read_first(runs, name, key, value):
    other = copied(runs[0], name, **{key: value})
    both = sorted([*runs, other], key=lambda run: run.name)
    with pytest.raises(ValueError, match=rf"{key}\.\w+ \(.*design\.arms") as refused:
        losses_of(both)
    assert runs[0].name in str(refused.value) and f" {name}" in str(refused.value)
    assert losses_of([*runs, copied(runs[0], name)]) == losses_of(runs)


def test_a_rate_at_which_a_run_diverged_is_not_chosen_while_another_has_none(runs):
    some = with_divergence(runs, lambda arm, width, seed, lr: (arm, seed, lr) == ("qk_norm", 1, 0.02))
    scales = read_scales(some, "plain", "qk_norm")
    assert {scale.rates for scale in scales} <= {(0.02, 0.01), (0.02, 0.04)}
    assert all(len(scale.gaps) == 3 and not scale.diverged for scale in scales)
    high = with_divergence(runs, lambda arm, width, seed, lr: lr > 0.02)  # they bound the grid
    assert [scale.at_edge for scale in read_scales(high, "plain", "qk_norm")] == [[]] * 6


def test_a_seed_that_diverged_at_every_rate_is_named_and_has_no_gap(runs):
    lost = with_divergence(runs, lambda arm, width, seed, lr: (arm, width, seed) == ("qk_norm", 128, 1))
    for scale in read_scales(lost, "plain", "qk_norm"):
        assert scale.diverged == ({"qk_norm": [1]} if scale.width == 128 else {})
        assert set(scale.gaps) == ({0, 2} if scale.width == 128 else {0, 1, 2})
    gone = with_divergence(runs, lambda arm, width, seed, lr: width == 128)  # of which no length is read
    *_, last = read_scales(gone, "plain", "qk_norm")
    assert last.gaps == {} and math.isinf(last.compute) and last.diverged["plain"] == [0, 1, 2]


def test_equal_arms_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    winners = [sign(predict(simulated(rng), 10.0, 0.9)) != "undecided" for _ in range(400)]
    assert np.mean(winners) <= 0.115


@pytest.mark.slow
def test_two_thousand_ablations_of_equal_arms_have_few_winners_and_bands_hold():
    rng = np.random.default_rng(1)
    winners = [sign(predict(simulated(rng), 10.0, 0.9)) != "undecided" for _ in range(2000)]
    assert np.mean(winners) <= 0.115
    gaps = [predict(simulated(rng, (-0.02, 0.01)), 10.0, 0.9) for _ in range(1000)]
    assert np.mean([gap.lo <= -0.01 <= gap.hi for gap in gaps]) >= 0.88
    found = [crossings(simulated(rng, (-0.02, 0.04)), 0.9) for _ in range(100)]
    truth = 10**0.5
    held = [(low is None or low <= truth) and (high is None or high >= truth) for at, low, high in found]
    assert np.mean(held) >= 0.84
