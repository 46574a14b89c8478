"""The figures of the transfer study, drawn from runs that are paired by seed."""

import json

import pytest

from kleiber.studies.transfer import Transfer

from .transfer_runs import paired_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return paired_runs(tmp_path_factory.mktemp("runs"))


def test_every_figure_is_drawn(runs):
    pytest.importorskip("altair")
    built = Transfer().analyze(runs).figures
    assert list(built) == ["gaps", "labels", "transferred", "texts"]
    for name, make in built.items():
        assert "toy" in json.dumps(make().to_dict()), name
