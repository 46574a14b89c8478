"""Figures of the forgetting law."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare import figures as plots
from kleiber.studies.forgetting_law import ForgettingLaw

from ..grid_runs import RATIOS, SHARES, SIZES, write_grid


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "law"
    write_grid(home)
    return home


@pytest.fixture(scope="module")
def record(study):
    return ForgettingLaw(tolerate=0.1, bootstrap=60).fitted(read_runs(study))


@pytest.mark.slow
@pytest.mark.parametrize("on_top", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_curve_of_replay_has_every_share_and_passes_through_the_points(tmp_path, on_top):
    write_grid(tmp_path / "s", sizes=SIZES[:1], ratios=RATIOS[:1], noise=1e-4, on_top=on_top)
    record = ForgettingLaw(tolerate=0.1, bootstrap=20).fitted(read_runs(tmp_path / "s"))
    drawn = plots.replay(plots.named_cells(record), record).to_dict()["datasets"].values()
    (line,) = (data for data in drawn if len(data) == 60)
    (points,) = (data for data in drawn if len(data) == len(SHARES))
    assert sorted(row["p"] for row in points) == list(SHARES)
    result = np.interp([row["p"] for row in points], [row["p"] for row in line], [row["F"] for row in line])
    assert result == pytest.approx([row["F"] for row in points], abs=0.012)  # between two of 60 points of a hyperbola
    assert len(record["critical"]["seen"]) == len(SHARES)
    assert any("over 3 cells" in question.text for question in record["claims"] if "p" in question.claim.of)


@pytest.mark.slow
def test_the_law_and_its_cells_are_drawn_on_one_scale(tmp_path):
    write_grid(tmp_path, sizes=SIZES[:2], ratios=RATIOS[:1], seeds=1)
    record = ForgettingLaw(tolerate=0.1, bootstrap=0).fitted(read_runs(tmp_path))
    rows = plots.named_cells(record)
    (cells,) = (data for data in plots.observed(rows, record).to_dict()["datasets"].values() if len(data) == len(rows))
    assert all(abs(cell["law"] - cell["F"]) < 0.05 for cell in cells)
    (plain,) = plots.tokens(rows).to_dict()["datasets"].values()
    assert {cell["p"] for cell in plain} == {0.0}
