"""Labels of the figures of arms."""

import numpy as np
import pandas as pd
import pytest


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
