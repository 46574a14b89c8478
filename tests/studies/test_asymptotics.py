"""The pre-asymptotic verdict: quiet on power laws with noise, loud when the small rungs are in a transient."""

import numpy as np
import pytest

from kleiber.studies.asymptotics import signs, transient
from kleiber.studies.fit import fit
from kleiber.studies.verdicts import pre_asymptotic

from . import ladders


def plateau(N, D, height=0.5, until=2e6):
    """Loss before the induction drop: `height` nats on top, gone as (D/until)^-4."""
    return ladders.small_loss(N, D) + height / (1 + (D / until) ** 4)


def floorless(N, D):
    return 30 * N**-0.3 + 40 * D**-0.25


def share(curve, count, sd=0.005):
    table = ladders.small()
    return (
        sum(bool(signs(fit("chinchilla", table, ladders.noisy(curve(**table), s, sd)))) for s in range(count)) / count
    )


def test_a_few_ladders_are_told_apart():
    assert share(ladders.small_loss, 8) <= 2 / 8 and share(plateau, 8) >= 7 / 8


@pytest.mark.slow
@pytest.mark.parametrize("curve", [ladders.small_loss, floorless])
def test_power_law_with_noise_reads_asymptotic(curve):
    assert share(curve, 100) <= 0.10


@pytest.mark.slow
def test_a_transient_reads_pre_asymptotic():
    assert share(plateau, 100) >= 0.90


def test_steepening_slopes_are_named():
    table = ladders.small()
    bent = ladders.small_loss(**table) * np.exp(-0.05 * np.log(table["D"] / 1e6) ** 2)
    verdicts = pre_asymptotic(fit("chinchilla", table, ladders.noisy(bent, 0)))
    assert [v.level for v in verdicts] == ["refuse"] and "steepens near D" in verdicts[0].text


def test_an_exponent_that_moves_with_the_least_d_is_named():
    table = ladders.small()
    L = ladders.small_loss(**table) + 0.5 * np.exp(-table["D"] / 2e6)
    assert any("beta moves from" in r for r in signs(fit("chinchilla", table, ladders.noisy(L, 0, 0.002))))


def test_a_floor_that_wants_to_be_negative_is_named():
    table = ladders.small()
    found = fit("chinchilla", table, ladders.noisy(floorless(**table) - 0.8, 0, 0.001))
    assert any("E sits at 0 and would be -" in reason for reason in signs(found))


def test_the_transients_size_is_measured():
    """Half a nat at D -> 0 decaying over 4M bytes: exp(-1/4) of it, over a loss of 3.3, at the smallest D."""
    table = ladders.small()
    curve = ladders.small_loss(**table)
    L = ladders.noisy(curve + 0.5 * np.exp(-table["D"] / 4e6), 0, 0.001)
    found = transient(fit("chinchilla", table, L, "squared"))
    assert found is not None and found.along == "D" and found.p_value < 0.01
