"""Recorded runs become cells whose bases come first and whose paths lead to where the archive is."""

from pathlib import Path

import pytest
from recorded_run import record

from kleiber.config.errors import Status
from kleiber.launch.reproduce import in_rounds
from kleiber.records.catalog import Run
from kleiber.runs.recorded_config import with_paths_to_study


def test_a_run_whose_weights_are_gone_is_trained_before_those_that_start_from_it(tmp_path):
    base = record(tmp_path / "base")
    middle = record(tmp_path / "middle", init=tmp_path / "base" / "main")
    last = record(tmp_path / "last", init=tmp_path / "middle" / "main")
    finished = {run.name: run for run in (base, middle, last)}

    def names(*chosen):
        return [[run.name for run in runs] for runs in in_rounds(chosen, finished, tmp_path)]

    assert names(last) == [["base"], ["middle"], ["last"]]
    assert names(last, middle, base) == [["base"], ["middle"], ["last"]]
    record(tmp_path / "middle", init=tmp_path / "base" / "main", weights="m")
    assert names(last) == [["last"]]


@pytest.mark.parametrize("study", ["{root}/study", "multirun/study"])
def test_paths_to_runs_of_an_archived_study_lead_to_where_the_archive_is(tmp_path, study):
    root = tmp_path / "gone" if study.startswith("{") else Path("multirun")
    study = study.format(root=root)
    config = {"root": str(root), "name": "study", "data": {"path": f"{tmp_path}/text.txt"}, "init": None}
    runs = {
        name: Run(tmp_path / name, Status.FINISHED, {}, {"config": {**config, "init": init}, "rows": []})
        for name, init in (("base", None), ("tuned", {"path": f"{study}/base/main"}))
    }
    assert [[run.name for run in each] for each in in_rounds([runs["tuned"]], runs, tmp_path)] == [["base"], ["tuned"]]
    present = with_paths_to_study(runs["tuned"].config, tmp_path / "tuned")
    assert present == {**config, "init": {"path": f"{tmp_path}/base/main"}}
