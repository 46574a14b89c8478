"""Profile likelihoods against brute force, and parameters that the rows do not identify."""

import numpy as np
import pytest

from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.uncertainty import profiles

from .. import ladders


def test_interval_of_a_straight_line_is_the_t_interval():
    """On a law linear in logs the profile interval is exactly estimate +- t se."""
    C = np.geomspace(1e18, 1e21, 12)
    y = ladders.noisy(0.1 * C**0.5, 3, 0.05)
    profile = profiles(fit("power", {"C": C}, y))["a"]
    x = np.log(C) - np.log(C).mean()
    slope = (x @ np.log(y)) / (x @ x)
    rest = np.log(y) - np.log(y).mean() - slope * x
    half = 1.8124611 * np.sqrt((rest @ rest) / 10 / (x @ x))  # t quantile .95, 10 df
    assert (profile.lo, profile.hi) == (pytest.approx(slope - half, abs=2e-4), pytest.approx(slope + half, abs=2e-4))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3, 4])
def test_at_the_ends_of_an_interval_the_refit_is_worse_by_the_threshold(seed):
    """Over only six times in tokens the profile of E bends between two values of the grid; other seeds drop E."""
    table = {"N": np.repeat(np.geomspace(1e5, 8e6, 6), 3), "D": np.tile([2e6, 4e6, 12e6], 6)}
    y = ladders.noisy(ladders.loss(**table), seed, 0.01)
    free = fit("chinchilla", table, y, loss_fn="squared")
    ends = [
        (name, end, profile.threshold)
        for name, profile in profiles(free).items()
        for end in (profile.lo, profile.hi)
        if np.isfinite(end) and end > 0
    ]
    assert len(ends) >= 7 and not free.dropped
    for name, end, threshold in ends:
        held = fit(free.law.fix({name: end}), table, y, loss_fn="squared")
        assert 13 * (held.value / free.value - 1) == pytest.approx(threshold, rel=0.02)


@pytest.mark.slow
def test_a_good_ladder_identifies_every_parameter():
    table = ladders.twenty()
    fitted = profiles(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 1, 0.002)))
    assert all(not profile.reason for profile in fitted.values())


@pytest.mark.slow
def test_repeats_that_never_hurt_leave_their_decay_unidentified():
    """R_D* is unknown when no run repeats enough: the profile is flat upwards, whatever the point value."""
    rng = np.random.default_rng(0)
    N, U = 10 ** rng.uniform(7, 9, 60), 10 ** rng.uniform(9, 10, 60)
    D = U * rng.choice([1.0, 1.5, 2.0], 60)
    L = ladders.noisy(ladders.loss(N, D), 0, 0.003)
    fitted = profiles(fit("data_constrained", {"N": N, "D": D, "U": U}, L))
    assert "flat" in fitted["RD"].reason
    assert not fitted["beta"].reason


def test_no_spare_rows_identify_nothing():
    table = {k: v[[0, 3, 9, 16, 19]] for k, v in ladders.twenty().items()}
    fitted = profiles(fit("chinchilla", table, ladders.loss(**table)))
    assert all(profile.reason.startswith("5 rows ") and "5 parameters" in profile.reason for profile in fitted.values())
