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
    by_code = {claim["code"]: claim for claim in trends(rows, noise, 0.9)}
    assert [claim["holds"] for claim in by_code.values()] == [True] * 5
    D, bases = (TOKENS[0], TOKENS[-1]), [(N, M) for N in SIZES for M in RATIOS]
    grown = np.mean([forgetting(N, D[1], M, 0) - forgetting(N, D[0], M, 0) for N, M in bases])
    result = by_code["grows_with_new_text"]
    assert result["lo"] < grown < result["hi"] and result["value"] == pytest.approx(grown, abs=0.005)
    fallen = np.mean([forgetting(SIZES[0], d, M, 0) - forgetting(SIZES[-1], d, M, 0) for d in TOKENS for M in RATIOS])
    assert by_code["falls_with_size"]["value"] == pytest.approx(fallen, abs=0.006)


def test_more_lengths_from_the_same_bases_make_no_trend_of_size_surer(study):
    rows, noise = grid_cells(read_runs(study))
    few = rows[rows["steps"] == rows["steps"].max()]
    many, claim = (
        {entry["code"]: entry["hi"] - entry["value"] for entry in trends(part, noise, level)}
        for part, level in ((rows, 1 - 0.1 * 5 / 4), (few, 0.9))  # one question less, each as sure
    )
    assert many["falls_with_size"] == pytest.approx(claim["falls_with_size"], rel=1e-6)
    assert not {"grows_with_new_text", "power_below_1"} & set(claim)


@pytest.mark.slow
def test_an_exponent_at_its_bound_has_not_settled(study):
    """F falls with new text here, which no exponent of the law says: nothing of it moves on doubling D."""
    rows, _ = grid_cells(read_runs(study))
    plain = rows["F"] * (rows["steps"] / rows["steps"].min()) ** -1.0
    record = ForgettingLaw(bootstrap=20).fit(rows.assign(F=plain), "replay_grid_ratio")
    assert record["params"]["beta"]["value"] < 1e-6
    assert not {"settled", "not_settled"} & {verdict["code"] for verdict in record["verdicts"]}


def test_what_forgets_less_with_new_text_does_not_grow(study):
    rows, noise = grid_cells(read_runs(study))
    turned = rows.assign(F=rows["F"].max() - rows["F"])
    by_code = {claim["code"]: claim["holds"] for claim in trends(turned, noise, 0.9)}
    assert by_code["grows_with_new_text"] is by_code["falls_with_size"] is by_code["falls_with_replay"] is False
