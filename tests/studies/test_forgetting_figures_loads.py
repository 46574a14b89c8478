"""Figures of how the load of experts shifts."""

import json

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.moe_forgetting import DENSE, FROZEN, MoEForgetting

from .mixture_runs import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "moe_forgetting"
    write_study(home)
    return home


def test_its_figures_are_drawn_and_name_the_arms(study):
    findings = MoEForgetting().analyze(read_runs(study))
    built = {name: json.dumps(make().to_dict()) for name, make in findings.figures.items()}
    assert set(built) == {"pareto", "matched", "trajectory", "loads"}
    assert all(FROZEN in by_name for by_name in built.values())
    assert DENSE in built["trajectory"] and "layer 1" in built["loads"]
