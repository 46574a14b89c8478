"""Scatters: references and the line of equality."""

import pytest
from chart_marks import marks

pytest.importorskip("altair")
import altair as alt
import pandas as pd

from kleiber.charts.scatter import point_names, scatter
from kleiber.charts.series import Marks

LAW = pd.DataFrame({"x": [1, 2, 3], "value": [3.0, 2.0, 1.5], "lo": 1.0, "hi": 4.0})
Y = alt.Y("value:Q", title="loss")


def test_a_scatter_has_the_line_of_equality_and_references_of_both_axes():
    points = Marks(rows=LAW.assign(law=[1.0, 2.0, 3.0]), points=40)
    chart = scatter([points], alt.X("law:Q"), Y, "T", references=(1.5, float("nan")), equality=True).to_dict()
    (ends,) = [table for table in chart["datasets"].values() if len(table) == 2]
    assert ends == [{"law": 1.0, "value": 1.0}, {"law": 3.0, "value": 3.0}]
    assert len(marks(chart, "rule")) == 1 and "x" in marks(chart, "rule")[0]["encoding"]


def test_names_of_points_on_the_right_stand_to_their_left_and_none_overlap():
    places = pd.DataFrame({"series": list("abcde"), "x": [1, 1, 1, 2, 2], "value": [1.0, 1.001, 5.0, 1.0, 3.0]})
    names = point_names(places, "series", "x", "value").rows.set_index("series")
    assert names["left"].to_dict() == {"a": False, "b": False, "c": False, "d": True, "e": True}
    assert names.loc["b", "at"] - names.loc["a", "at"] > 0.1 and names.loc["c", "at"] == 5
    assert names.loc["d", "at"] == 1, "a name on the other side is not in its way"
    chart = scatter([point_names(places, "series", "x", "value")], alt.X("x:Q"), Y, "T").to_dict()
    sides = {(text["mark"]["align"], text["transform"][0]["filter"]) for text in marks(chart, "text")}
    assert sides == {("left", "!datum.left"), ("right", "datum.left")}
    alone = point_names(places[:2], "series", "x", "value").rows
    assert not alone["left"].any(), "points at one place have names on the right"
