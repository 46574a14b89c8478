"""The forms of the law of schedules: simple schedules have known values."""

import numpy as np
import pytest

from kleiber_topics.schedules.forms import MULTI_POWER, rate_path, rate_sums, warmup_length

from .planted import PLANTED, rates_of


def test_a_constant_rate_gains_nothing_and_sums_to_rate_times_steps():
    steps = np.arange(1.0, 1001.0)
    rates = np.full(1000, 2e-3)
    path = rate_path(steps, rates, steps)
    assert len(path.drops) == 0 and path.sums[-1] == pytest.approx(2e-3 * 999 + 1e-3)
    values = np.array([[2.0, 0.5, 0.5, 100.0, 2.0, 0.6, 0.6]])
    assert MULTI_POWER.losses(path, values)[0] == pytest.approx(2.0 + 0.5 * path.sums**-0.5)


def test_a_drop_gains_at_most_its_size_and_neighbors_can_be_joined():
    steps = np.arange(10.0, 4001.0, 10.0)
    rates = rates_of("cosine", steps, 4000)
    values = np.array([PLANTED["multi_power"][1]])
    whole, joined = (rate_path(steps, rates, steps, most) for most in (400, 40))
    assert len(joined.drops) == 40 and joined.drops.sum() == pytest.approx(whole.drops.sum())
    assert MULTI_POWER.losses(joined, values) == pytest.approx(MULTI_POWER.losses(whole, values), rel=1e-3)
    trend = 3.0 + 0.5 * whole.sums**-0.5
    assert (trend - MULTI_POWER.losses(whole, values)[0]).max() < 420.0 * 3e-4


def test_the_warm_up_ends_at_the_first_full_rate():
    rates = np.array([1.0, 2.0, 3.0, 3.0, 2.0, 1.0])
    assert warmup_length(rates) == 2 and warmup_length(np.ones(3)) == 0
    assert rate_sums(np.array([10.0, 20.0]), np.array([2.0, 2.0])) == pytest.approx([10.0, 30.0])
