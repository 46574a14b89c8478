"""The reach of an interval against scipy's distribution."""

import math

import pandas as pd
import pytest
from scipy import stats

from kleiber.studies.compare.intervals import reach, seed_means


@pytest.mark.parametrize("df", [1, 3, 40])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_reach_holds_the_level(df, level):
    assert 1 - 2 * stats.t.sf(reach(df, level), df) == pytest.approx(level)


def test_without_degrees_of_freedom_there_is_none():
    assert math.isnan(reach(0, 0.9))


def test_means_over_seeds_have_an_interval_only_where_something_was_trained_twice():
    rows = pd.DataFrame({"a": [1, 1, 2, 2], "v": [1.0, 1.2, 3.0, 3.2]})
    found = seed_means(rows, ["a"], "v")
    assert found["mean"].tolist() == pytest.approx([1.1, 3.1]) and (found["half"] > 0.1).all()
    assert seed_means(rows.iloc[[0, 2]], ["a"], "v")["half"].isna().all()


def test_branches_of_a_trunk_are_no_seeds_of_their_own():
    """Two trunks of four branches each: one degree of freedom, whatever the number of branches."""
    rows = pd.DataFrame([{"run": run, "D": d, "v": d + 0.1 * run} for run in range(2) for d in range(4)])
    found, apart = (seed_means(one, ["D"], "v") for one in (rows, rows.drop(columns="run")))
    assert (found["half"] / apart["half"]).to_numpy() == pytest.approx(6.3138 / 2.1318, rel=1e-3)
