"""Scatters: references and the line of equality."""

import pytest
from chart_marks import marks

pytest.importorskip("altair")
import altair as alt
import pandas as pd

from kleiber.charts.scatter import scatter
from kleiber.charts.series import Marks

LAW = pd.DataFrame({"x": [1, 2, 3], "value": [3.0, 2.0, 1.5], "lo": 1.0, "hi": 4.0})
Y = alt.Y("value:Q", title="loss")


def test_a_scatter_has_the_line_of_equality_and_references_of_both_axes():
    points = Marks(rows=LAW.assign(law=[1.0, 2.0, 3.0]), points=40)
    chart = scatter([points], alt.X("law:Q"), Y, "T", references=(1.5, float("nan")), equality=True).to_dict()
    (ends,) = [table for table in chart["datasets"].values() if len(table) == 2]
    assert ends == [{"law": 1.0, "value": 1.0}, {"law": 3.0, "value": 3.0}]
    assert len(marks(chart, "rule")) == 1 and "x" in marks(chart, "rule")[0]["encoding"]
