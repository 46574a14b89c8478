"""An analysis that fails on runs without a whole config names the run; any other failure stays what it is."""

import pytest
from fake_run import fake_run

from kleiber.config.errors import ConfigError
from kleiber.records.catalog import read_run
from kleiber.records.completeness import GROUPS, incomplete_runs_named

WHOLE = {name: {"x": 1} for name in GROUPS}


@pytest.mark.parametrize("config", [{}, {**WHOLE, "model": None}, {**WHOLE, "batch": 3}])
def test_the_first_run_without_a_whole_config_is_named(tmp_path, config):
    runs = [read_run(fake_run(tmp_path / name, config=each)) for name, each in (("a", WHOLE), ("b", config))]
    with pytest.raises(ConfigError, match=r"/b: its config has no group (model|batch)"), incomplete_runs_named(runs):
        _ = [run.config["model"]["x"] + run.config["batch"]["x"] for run in runs]


def test_an_error_that_is_not_of_the_records_is_raised_as_it_is(tmp_path):
    runs = [read_run(fake_run(tmp_path / "a", config=WHOLE))]
    with pytest.raises(KeyError, match="typo"), incomplete_runs_named(runs):
        _ = runs[0].config["model"]["typo"]
    with pytest.raises(ValueError, match="no law"), incomplete_runs_named(runs):
        raise ValueError("no law")
