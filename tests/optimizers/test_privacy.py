"""Epsilon equals that of opacus, noise reaches the epsilon that was asked for, and wrong settings are refused."""

import math

import pytest
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from kleiber.optimizers.privacy import DPSGD, PrivateSteps

STEPS = PrivateSteps(noise=1.1, clip=1.0, delta=1e-5, rate=0.01, samples=5000)


@pytest.mark.filterwarnings("ignore")
def test_epsilon_is_that_of_opacus_after_as_many_steps():
    accountant = RDPAccountant()
    for _ in range(40):
        accountant.step(noise_multiplier=1.1, sample_rate=0.01)
    assert STEPS.epsilon(40) == pytest.approx(accountant.get_epsilon(delta=1e-5), rel=1e-12)
    assert STEPS.epsilon(0) == 0 and STEPS.epsilon(10) < STEPS.epsilon(40)


def test_epsilon_of_all_samples_in_one_step_is_that_of_the_gaussian_mechanism():
    """Rényi divergence alpha / (2 sigma^2) (Mironov 2017, arXiv:1702.07476), converted as in Balle et al. 2020."""
    orders = [order / 10 for order in range(11, 640)]
    convert = [a / (2 * 2.0**2) + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in orders]
    assert PrivateSteps(2.0, 1.0, 1e-5, 1.0, 10).epsilon(1) == pytest.approx(min(convert), rel=1e-2)


def test_a_small_epsilon_can_be_spent_with_large_orders():
    """The orders of opacus alone, up to 63, cannot show less than .1029 at this delta, however large the noise."""
    assert PrivateSteps(20.0, 1.0, 1e-5, 0.01, 5000).epsilon(40) < 0.02


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_noise_reaches_the_epsilon_that_was_asked_for():
    for epsilon in (0.5, 3.0):
        plan = DPSGD(epsilon=epsilon).plan(5000, 50, 400)
        assert 0.97 * epsilon <= plan.epsilon(400) <= epsilon
        theirs = get_noise_multiplier(target_epsilon=epsilon, target_delta=1e-5, sample_rate=0.01, steps=400)
        assert plan.noise == pytest.approx(theirs, rel=0.02)
    assert DPSGD().plan(5000, 50, 400).epsilon(400) == pytest.approx(8, rel=0.01)
    assert DPSGD(noise_multiplier=0.7, clip=0.3, delta=1e-6).plan(5000, 50, 400) == PrivateSteps(
        0.7, 0.3, 1e-6, 0.01, 5000
    )


def test_the_record_and_the_line_tell_what_is_guaranteed():
    record = STEPS.record(30)
    assert record["epsilon"] == STEPS.epsilon(30) and record["steps"] == 30 and record["samples"] == 5000
    assert (record["sampling"], record["accountant"], record["noise_multiplier"]) == ("poisson", "rdp", 1.1)
    line = STEPS.describe(30)
    assert f"epsilon {STEPS.epsilon(30):.3g}, delta 1e-05 for each of 5,000 samples" in line and "about 50" in line


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, 50, "exclude each other"),
        ({"delta": 0.001}, 50, "privacy.delta=0.001 must be < 1 / 5,000"),
        ({}, 5001, "set a smaller batch.tokens"),
        ({"epsilon": 1e-9}, 50, "privacy.epsilon=1e-09 is too small"),
    ],
)
def test_settings_that_protect_nothing_are_refused(settings, rows, message):
    with pytest.raises(ValueError, match=message):
        DPSGD(**settings).plan(5000, rows, 100)
