"""The noise over seeds of runs that fine-tune common bases."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare import noise
from kleiber.studies.compare import rows as outcomes

from ..comparisons import write_study


def test_noise_is_that_of_runs_and_not_of_points_between_them(tmp_path):
    write_study(tmp_path / "s")
    rows = outcomes.outcomes(read_runs(tmp_path / "s"))
    runs = rows[rows["method"] != "wise"]
    assert noise.seed_noise(rows, "F") == noise.seed_noise(runs, "F")
    left = noise.within_seeds(rows, "F")
    assert left.df == (3 - 1) * (18 - 1) and left.sd == pytest.approx(0.004, rel=0.3)
    part = rows[~((rows["seed"] == 2) & (rows["method"] == "replay"))]
    assert noise.within_seeds(part, "F").df == left.df - 9, "a missing run is a missing degree of freedom"
