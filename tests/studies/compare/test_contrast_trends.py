"""Trends of a difference over sizes, with their intervals."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.contrast import trends
from kleiber.studies.forgetting_law import ForgettingLaw, grid_cells

from ..grid_runs import RATIOS, SIZES, TOKENS, forgetting, write_grid


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "law"
    write_grid(home)
    return home


def test_trends_are_told_without_a_law(study):
    """Means over the cells of the true law, from end to end of each input."""
    rows, noise = grid_cells(read_runs(study))
    told = {one.code: one for one in trends(rows, noise, 0.9)}
    assert [one.holds for one in told.values()] == [True] * 5
    D, bases = (TOKENS[0], TOKENS[-1]), [(N, M) for N in SIZES for M in RATIOS]
    grown = np.mean([forgetting(N, D[1], M, 0) - forgetting(N, D[0], M, 0) for N, M in bases])
    found = told["grows_with_new_text"]
    assert found.lo < grown < found.hi and found.value == pytest.approx(grown, abs=0.005)
    fallen = np.mean([forgetting(SIZES[0], d, M, 0) - forgetting(SIZES[-1], d, M, 0) for d in TOKENS for M in RATIOS])
    assert told["falls_with_size"].value == pytest.approx(fallen, abs=0.006)


def test_more_lengths_from_the_same_bases_make_no_trend_of_size_surer(study):
    rows, noise = grid_cells(read_runs(study))
    few = rows[rows["steps"] == rows["steps"].max()]
    many, one = (
        {told.code: told.hi - told.value for told in trends(part, noise, level)}
        for part, level in ((rows, 1 - 0.1 * 5 / 4), (few, 0.9))  # one question less, each as sure
    )
    assert many["falls_with_size"] == pytest.approx(one["falls_with_size"], rel=1e-6)
    assert not {"grows_with_new_text", "power_below_1"} & set(one)


def test_an_exponent_at_its_bound_has_not_settled(study):
    """F falls with new text here, which no exponent of the law says: nothing of it moves on doubling D."""
    rows, _ = grid_cells(read_runs(study))
    plain = rows["F"] * (rows["steps"] / rows["steps"].min()) ** -1.0
    told = ForgettingLaw(bootstrap=20).fit(rows.assign(F=plain), "replay_grid_ratio")
    assert told["params"]["beta"]["value"] < 1e-6
    assert not {"settled", "not_settled"} & {one["code"] for one in told["verdicts"]}


def test_what_forgets_less_with_new_text_does_not_grow(study):
    rows, noise = grid_cells(read_runs(study))
    turned = rows.assign(F=rows["F"].max() - rows["F"])
    told = {one.code: one.holds for one in trends(turned, noise, 0.9)}
    assert told["grows_with_new_text"] is told["falls_with_size"] is told["falls_with_replay"] is False
