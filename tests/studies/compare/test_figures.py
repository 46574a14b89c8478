"""Every arm appears in the figures of a comparison."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.adapters import Adapters

from ..adapter_runs import adapter_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return adapter_runs(tmp_path_factory.mktemp("runs"))


def test_figures_hold_every_arm(runs):
    pytest.importorskip("altair")
    for name, make in Adapters().analyze(runs).figures.items():
        drawn = json.dumps(make().to_dict())
        assert "rank 16" in drawn, name
        assert "full" in drawn or name == "ranks"


def test_rates_far_beyond_the_frontiers_are_counted_and_not_drawn():
    pytest.importorskip("altair")
    from kleiber.studies.compare.figures import frontier

    rows = [("full", 1.0, 0.2, True), ("full", 1.2, 0.1, True), ("rank 1", 1.3, 0.1, True), ("rank 1", 3.0, 2.0, False)]
    points = pd.DataFrame(rows, columns=["method", "target", "F", "best"]).assign(F_sd=0.01, lr=0.1, n=3)
    drawn = frontier(points, ["full", "rank 1"]).to_dict()
    assert "1 more lie beyond the axes" in drawn["title"]["subtitle"]
    assert max(row["target"] for table in drawn["datasets"].values() for row in table) == 1.3


def test_names_side_by_side_do_not_overlap_and_others_stay_at_their_places():
    alt = pytest.importorskip("altair")
    from kleiber.studies.compare.figures import named

    places = pd.DataFrame({"lr": [1.0, 1.1, 9.0], "loss": [2.0, 2.001, 2.002], "arm": ["a", "b", "c"]})
    chart = named(
        pd.concat([places, pd.DataFrame({"lr": [5.0], "loss": [3.0], "arm": ["d"]})]), "lr", "loss", alt.X("lr:Q")
    )
    heights = dict(zip(chart.data["arm"], chart.data["at"], strict=True))
    room = 0.045 * (3.0 - 2.0)
    assert heights["a"] == 2.0 and heights["c"] == 2.002 and heights["d"] == 3.0
    assert np.isclose(heights["b"], heights["a"] + room)
    assert chart.to_dict()["encoding"]["text"]["field"] == "arm"
