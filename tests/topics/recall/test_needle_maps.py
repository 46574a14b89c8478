"""Heat maps of needles: a panel for each arm in their order, colors from 0 to 1, and a number in each cell."""

import pandas as pd

from kleiber_topics.recall.needle import heat_maps


def test_a_panel_for_each_arm_with_common_colors():
    rows = pd.DataFrame(
        [
            {"panel": panel, "length": length, "depth": depth, "value": 0.5}
            for panel in ("LSTM", "full")
            for length in (16, 32)
            for depth in (0.0, 0.5, 1.0)
        ]
    )
    spec = heat_maps(rows, "Recall", "a guess: 12%").to_dict()
    assert spec["facet"]["sort"] == ["LSTM", "full"] and spec["title"]["subtitle"] == "a guess: 12%"
    marks = {layer["mark"]["type"]: layer["encoding"] for layer in spec["spec"]["layer"]}
    assert marks["rect"]["color"]["scale"]["domain"] == [0, 1] and marks["text"]["text"]["format"] == ".0%"
    assert (spec["spec"]["width"], spec["spec"]["height"]) == (2 * 46, 3 * 30)
