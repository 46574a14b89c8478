"""Epsilon is that of the PRV accountant, noise reaches the epsilon that was asked for, wrong settings are refused."""

import math
import warnings

import pytest
from opacus.accountants import PRVAccountant
from opacus.accountants.utils import get_noise_multiplier
from scipy.special import ndtr

from kleiber.optimizers.privacy import DPSGD, PrivateSteps, renyi_bound

STEPS = PrivateSteps(noise=1.1, clip=1.0, delta=1e-5, rate=0.01, samples=5000)


@pytest.mark.slow
def test_epsilon_is_that_of_the_prv_accountant_after_as_many_steps():
    accountant = PRVAccountant()
    for _ in range(40):
        accountant.step(noise_multiplier=1.1, sample_rate=0.01)
    assert STEPS.epsilon(40) == pytest.approx(accountant.get_epsilon(delta=1e-5, eps_error=0.001), rel=0.03)
    assert STEPS.epsilon(0) == 0 and STEPS.epsilon(10) < STEPS.epsilon(40)


def test_rényi_divergences_would_say_more_than_half_as_much_again():
    """The noise of the recorded study of memorization at epsilon 1, 79 steps of 2,511 samples."""
    noise, rate = 1.123046875, 0.012743926722421346
    assert renyi_bound(noise, rate, 1e-5, 79) == pytest.approx(0.9963, abs=1e-4)
    assert PrivateSteps(noise, 1.0, 1e-5, rate, 2511).epsilon(79) == pytest.approx(0.625, abs=0.01)


def test_epsilon_of_all_samples_in_one_step_is_that_of_the_gaussian_mechanism():
    """delta(epsilon) = Phi(1/2s - es) - exp(e) Phi(-1/2s - es) (Balle and Wang 2018, arXiv:1805.06530)."""
    sigma, epsilon = 2.0, PrivateSteps(2.0, 1.0, 1e-5, 1.0, 10).epsilon(1)

    def delta(e):
        return ndtr(1 / (2 * sigma) - e * sigma) - math.exp(e) * ndtr(-1 / (2 * sigma) - e * sigma)

    assert delta(epsilon) <= 1e-5 <= delta(0.98 * epsilon)


def test_an_epsilon_that_protects_nothing_is_bounded_by_rényi_divergences():
    record = PrivateSteps(0.19, 1.0, 1e-5, 0.0127, 2511).record(79)
    assert (record["epsilon"], record["accountant"]) == (renyi_bound(0.19, 0.0127, 1e-5, 79), "rdp")


def test_the_epsilon_within_a_run_is_that_of_the_end_of_its_fifth():
    assert STEPS.epsilon_within(1, 40) == STEPS.epsilon_within(8, 40) == STEPS.epsilon(8)
    assert STEPS.epsilon_within(40, 40) == STEPS.epsilon(40) and STEPS.epsilon_within(2, 3) == STEPS.epsilon(2)
    assert STEPS.epsilon_within(41, 42) == STEPS.epsilon(42)


@pytest.mark.slow
def test_a_small_epsilon_can_be_spent_with_large_orders():
    """The orders of opacus alone, up to 63, cannot show less than .1029 at this delta, however large the noise."""
    assert PrivateSteps(20.0, 1.0, 1e-5, 0.01, 5000).epsilon(40) < 0.02


@pytest.mark.slow
def test_noise_reaches_the_epsilon_that_was_asked_for():
    for epsilon in (0.1, 0.5, 3.0):
        plan = DPSGD(epsilon=epsilon).plan(5000, 50, 400)
        assert 0.98 * epsilon <= plan.epsilon(400) <= epsilon
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=3.0, target_delta=1e-5, sample_rate=0.01, steps=400, accountant="prv", epsilon_tolerance=0.01
        )
    assert plan.noise == pytest.approx(theirs, rel=0.02)
    assert DPSGD().plan(5000, 50, 400).epsilon(400) == pytest.approx(8, rel=0.02)


def test_noise_that_was_asked_for_is_taken():
    plan = DPSGD(noise_multiplier=0.7, clip=0.3, delta=1e-6).plan(5000, 50, 400)
    assert plan == PrivateSteps(0.7, 0.3, 1e-6, 0.01, 5000)


def test_the_record_and_the_line_tell_what_is_guaranteed():
    record = STEPS.record(30)
    assert record["epsilon"] == STEPS.epsilon(30) and record["steps"] == 30 and record["samples"] == 5000
    assert (record["sampling"], record["accountant"], record["noise_multiplier"]) == ("poisson", "prv", 1.1)
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
