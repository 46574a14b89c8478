"""The reach of an interval against scipy's distribution."""

import math

import pytest
from scipy import stats

from kleiber.studies.compare.intervals import reach


@pytest.mark.parametrize("df", [1, 3, 40])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_reach_holds_the_level(df, level):
    assert 1 - 2 * stats.t.sf(reach(df, level), df) == pytest.approx(level)


def test_without_degrees_of_freedom_there_is_none():
    assert math.isnan(reach(0, 0.9))
