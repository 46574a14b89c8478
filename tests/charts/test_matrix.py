"""Matrices: colors for the worse, written values."""

import numpy as np
import pandas as pd
import pytest
from chart_marks import marks

pytest.importorskip("altair")
import altair as alt

from kleiber.charts.matrix import change_matrix, heat_map


def test_for_the_worse_is_red_whichever_way_scores_go():
    cells = pd.DataFrame({"task": ["a"], "arm": ["b"], "value": [1.0], "change": [0.5]})
    axes = alt.X("task:N"), alt.Y("arm:N")
    reversed_scale = [
        marks(change_matrix(cells, *axes, "change", "R", worse=worse).to_dict(), "rect")[0]["encoding"]["color"]
        for worse in (True, False)
    ]
    assert [color["condition"]["scale"]["reverse"] for color in reversed_scale] == [True, False]


def test_cells_without_a_color_leave_the_scale_to_the_others():
    axes = alt.X("task:N"), alt.Y("arm:N")
    for changes, limit in (([0.5, np.nan], 0.5), ([np.nan, np.nan], 1.0)):
        cells = pd.DataFrame({"task": ["a", "b"], "arm": "c", "value": [0.5, 0.9], "change": changes})
        (rect,) = marks(change_matrix(cells, *axes, "change", "R").to_dict(), "rect")
        assert rect["encoding"]["color"]["condition"]["scale"]["domain"] == [-limit, limit]


@pytest.mark.parametrize(("change", "limit"), [(0.076, 0.08), (-3.72, 4.0), (0.3, 0.3), (-0.0999, 0.1), (1.0, 1.0)])
def test_the_ends_of_the_legend_are_round_and_those_of_the_colors(change, limit):
    cells = pd.DataFrame({"task": ["a"], "arm": ["b"], "value": [1.0], "change": [change]})
    (rect,) = marks(change_matrix(cells, alt.X("task:N"), alt.Y("arm:N"), "change", "R").to_dict(), "rect")
    color = rect["encoding"]["color"]["condition"]
    assert color["scale"]["domain"] == [-limit, limit] and color["legend"]["values"] == [-limit, 0, limit]


def test_values_of_few_columns_are_written_into_cells():
    axes = alt.X("head:O"), alt.Y("layer:O")
    for heads, texts in ((4, 1), (40, 0)):
        rows = pd.DataFrame({"head": range(heads), "layer": 0, "value": np.linspace(0, 1, heads), "data": "docs"})
        chart = heat_map(rows, *axes, "share", "T", domain=(0, 1), panel="data").to_dict()
        assert len(marks(chart, "text")) == texts and chart["facet"]["sort"] == ["docs"]
        assert marks(chart, "rect")[0]["encoding"]["color"]["scale"]["domain"] == [0, 1]
