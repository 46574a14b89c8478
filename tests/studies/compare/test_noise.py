"""The noise over seeds of runs that fine-tune common bases."""

from kleiber.records.catalog import read_runs
from kleiber.studies.compare import noise
from kleiber.studies.compare import rows as outcomes

from ..comparisons import write_study


def test_noise_is_that_of_runs_and_not_of_points_between_them(tmp_path):
    write_study(tmp_path / "s")
    rows = outcomes.outcomes(read_runs(tmp_path / "s"))
    runs = rows[rows["method"] != "wise"]
    assert noise.seed_noise(rows, "F") == noise.seed_noise(runs, "F")
