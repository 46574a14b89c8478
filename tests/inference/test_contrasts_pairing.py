"""The F test of the seed: closed form, its level, and when pairing pays."""

import math

import numpy as np
import pytest
from scipy.stats import f

from kleiber.inference.contrasts import PAYS, pays, seed_effect


def test_the_f_of_the_seed_is_that_of_randomized_blocks():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 3)) + np.arange(3)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    between, within = 4 * ((table.mean(0) - table.mean()) ** 2).sum() / 2, (rest**2).sum() / 6
    assert seed_effect(table) == (pytest.approx(between / within), pytest.approx(f.sf(between / within, 2, 6)))


def test_a_shared_seed_pays_and_none_does_so_as_often_as_the_level_says():
    rng = np.random.default_rng(1)
    shared = [pays(rng.normal(size=(6, 4)) + 3 * rng.normal(size=4)) for _ in range(200)]
    alone = [pays(rng.normal(size=(6, 4))) for _ in range(2000)]
    assert np.mean(shared) > 0.95 and np.mean(alone) == pytest.approx(PAYS, abs=0.02)


def test_nothing_is_tested_with_one_group_or_seed_or_without_variation():
    for table in ([[1.0, 2.0, 3.0]], [[1.0], [2.0]], [[1.0, 1.0], [2.0, 2.0]]):
        assert math.isnan(seed_effect(table)[0]) and not pays(table)
    assert pays([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
