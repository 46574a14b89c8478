"""Figures of sequences of tasks."""

import json

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.continual import Continual

from ..sequence_runs import write_sequence, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "continual"
    write_study(home)
    return home


@pytest.mark.slow
def test_its_figures_are_drawn_for_each_start(study, tmp_path):
    assert set(Continual().analyze(read_runs(study)).figures) == {"metrics", "matrix", "first_task"}
    write_sequence(tmp_path / "s", again=False)
    write_sequence(tmp_path / "s", again=False, start="base")
    findings = Continual().analyze(read_runs(tmp_path / "s"))
    assert set(findings.figures) == {f"{name}-{s}" for name in ("metrics", "matrix", "first_task") for s in
                                  ("scratch", "base")}  # fmt: skip
    drawn = {name: json.dumps(make().to_dict()) for name, make in findings.figures.items()}
    assert "from base" in drawn["matrix-base"] and "ACC (higher is better)" in drawn["metrics-scratch"]
