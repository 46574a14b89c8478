"""Forms of figures: colors, small multiples, scales of panels, and where intervals are drawn."""

import re

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("altair")
import altair as alt

from kleiber.charts.distribution import distribution, histogram
from kleiber.charts.estimates import BOUNDS, estimates
from kleiber.charts.lines import Marks, arm_color, end_names, lines, seed_lines
from kleiber.charts.matrix import heat_map, matrix
from kleiber.charts.scatter import scatter
from kleiber.charts.theme import KINDS, span, values_axis


def marks(node, kind):
    """The layers of a chart with this mark, however deep they lie."""
    if isinstance(node, dict):
        mark = node.get("mark")
        here = [node] if (mark.get("type") if isinstance(mark, dict) else mark) == kind else []
        return here + [layer for value in node.values() for layer in marks(value, kind)]
    return [layer for value in node for layer in marks(value, kind)] if isinstance(node, list) else []


def test_an_arm_has_one_color_whichever_arms_are_beside_it():
    order = [f"arm {i}" for i in range(8)]
    colors = {}
    for shown in (order, order[2:5], order[4:]):
        scale = arm_color(order, shown).to_dict()["scale"]
        for name, color in zip(scale["domain"], scale["range"], strict=True):
            assert colors.setdefault(name, color) == color
    assert colors["arm 0"] == "#000000" and len(set(colors.values())) == 8


def lines_of(number):
    rows = [(f"arm {i}", x, seed, i + x) for i in range(number) for x in (1, 2) for seed in range(2)]
    rows = pd.DataFrame(rows, columns=["series", "x", "seed", "value"])
    return seed_lines(rows, alt.X("x:Q"), "loss", [f"arm {i}" for i in range(number)], "Loss vs x").to_dict()


@pytest.mark.parametrize(("number", "panels"), [(6, 0), (7, 6)])
def test_more_than_six_arms_are_small_multiples_beside_the_reference(number, panels):
    drawn = lines_of(number)
    assert len(drawn.get("concat", [])) == panels
    for panel in drawn.get("concat", []):
        rows = [row for name in re.findall(r"data-[0-9a-f]+", str(panel)) for row in drawn["datasets"][name]]
        assert {row["series"] for row in rows} == {"arm 0", panel["title"]}


@pytest.mark.parametrize("log", [False, True])
def test_panels_of_a_measure_have_one_scale(log):
    rows = pd.DataFrame({"series": "a", "x": [1, 2] * 2, "panel": ["low"] * 2 + ["high"] * 2, "value": [1, 2, 3, 8.0]})
    panels = seed_lines(rows, alt.X("x:Q"), "share", ["a"], "Share vs x", log=log).to_dict()["concat"]
    domains = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for panel in panels]
    assert domains[0] == domains[1] and domains[0][0] <= 1 and domains[0][1] >= 8


def test_an_estimate_without_an_interval_has_a_dot_alone():
    rows = [
        {"series": "a", "value": 0.1, "lo": None, "hi": None},
        {"series": "b", "value": 0.2, "lo": None, "hi": None},
    ]
    alone = estimates(rows, ["a", "b"], "nats", "Differences").to_dict()
    assert len(marks(alone, "point")) == 1 and not marks(alone, "rule")
    both = estimates([*rows, {"series": "a", "value": 1.0, "lo": 0.5, "hi": 1.5}], ["a", "b"], "nats", "x").to_dict()
    assert len(marks(both, "rule")) == 1
    panels = [{**row, "panel": row["series"]} for row in rows]
    assert len(estimates(panels, ["a", "b"], "nats", "x").to_dict()["concat"]) == 2


def test_a_bound_is_drawn_as_one_with_the_closed_side_of_its_interval():
    rows = [
        {"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "bound": bound}
        for name, bound in zip("abcd", BOUNDS, strict=True)
    ]
    chart = estimates(rows, "abcd", "nats", "Differences").to_dict()
    drawn = {row["bound"]: row for table in chart["datasets"].values() for row in table}
    ends = {name: (row["lo"], row["hi"]) for name, row in drawn.items()}
    assert ends == {"": (0.5, 1.5), "at most": (1.0, 1.5), "at least": (0.5, 1.0), "not bounded by": (1.0, 1.0)}
    shape = marks(chart, "point")[0]["encoding"]["shape"]["scale"]
    assert dict(zip(shape["domain"], shape["range"], strict=True)) == {
        "": "circle", "at most": "triangle-left", "at least": "triangle-right", "not bounded by": "cross",
    }  # fmt: skip
    assert all(text in chart["title"]["subtitle"] for text in ("at most", "at least", "bounds nothing"))
    alone = estimates([{**rows[1], "lo": None, "hi": None}], "b", "nats", "Differences").to_dict()
    assert not marks(alone, "rule")


def test_axes_hold_their_values_with_room_on_both_sides():
    low, high = span([1.0, 3.0]).domain
    assert low == pytest.approx(0.9) and high == pytest.approx(3.1)
    low, high = span([2.0, 2.0]).domain
    assert low < 2.0 < high
    axis = values_axis("share", "share", [1.0, 0.01, 1.0], "~%").to_dict()
    assert axis["axis"]["values"] == [0.01, 1.0]


def test_for_the_worse_is_red_whichever_way_scores_go():
    cells = pd.DataFrame({"task": ["a"], "arm": ["b"], "value": [1.0], "change": [0.5]})
    axes = alt.X("task:N"), alt.Y("arm:N")
    reversed_scale = [
        marks(matrix(cells, *axes, "change", "R", worse=worse).to_dict(), "rect")[0]["encoding"]["color"]
        for worse in (True, False)
    ]
    assert [color["condition"]["scale"]["reverse"] for color in reversed_scale] == [True, False]


LAW = pd.DataFrame({"x": [1, 2, 3], "value": [3.0, 2.0, 1.5], "lo": 1.0, "hi": 4.0, "beyond": [False, False, True]})
X, Y = alt.X("x:Q"), alt.Y("value:Q", title="loss")


def test_a_table_is_drawn_as_it_declares():
    law = Marks(rows=LAW, line=2.0, dashed="beyond", band=0.2)
    runs = Marks(rows=LAW.assign(early=LAW["x"] < 2), points=40, bars=1.0, hollow="early")
    chart = lines([law, runs], X, Y, "Loss vs x", reference=2.0).to_dict()
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["rule", "area", "line", "line", "rule", "point"]
    dashed, solid = marks(chart, "line")
    assert "strokeDash" in dashed["mark"] and "!datum.beyond" in str(solid["transform"])
    assert marks(chart, "point")[0]["encoding"]["fill"]["condition"]["value"] == "white"
    unknown = Marks(rows=LAW.assign(lo=np.nan), line=1.0, band=0.2, bars=1.0)
    assert [layer["mark"]["type"] for layer in lines([unknown], X, Y, "Loss vs x").to_dict()["layer"]] == ["line"]


def test_panels_have_their_rows_their_reference_and_their_unit():
    rows = pd.concat([LAW.assign(panel="loss", at=2.0), LAW.assign(panel="share", value=LAW["value"] / 10, at=0.2)])
    options = {"panel": "panel", "reference": "at", "own_scales": True, "units": {"loss": "nats", "share": "%"}}
    chart = lines([Marks(rows=rows, line=1.0)], X, Y, "T", **options).to_dict()
    assert [panel["title"] for panel in chart["concat"]] == ["loss", "share"]
    assert {row["reference"] for table in chart["datasets"].values() for row in table if "reference" in row} == {
        2.0,
        0.2,
    }
    assert [marks(panel, "line")[0]["encoding"]["y"]["title"] for panel in chart["concat"]] == ["nats", "%"]
    ends = [marks(panel, "line")[0]["encoding"]["y"]["scale"]["domain"] for panel in chart["concat"]]
    assert min(high for _, high in ends) > 4 and ends[0][0] > ends[1][0], "both have the interval, each its reference"


def test_the_names_of_lines_are_moved_apart_at_their_ends():
    rows = pd.concat([LAW.assign(size="a"), LAW.assign(size="b", value=LAW["value"] + 1e-6)])
    names = end_names(rows, "size", "x")
    assert names.rows["x"].tolist() == [3, 3] and float(np.ptp(names.rows["height"])) >= 0.04 * float(
        np.ptp(rows["value"])
    )


def test_a_second_value_and_a_hollow_dot_are_drawn():
    rows = [{"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "hollow": name == "b", "other": 0.8} for name in "ab"]
    chart = estimates(rows, ["a", "b"], "loss", "Finalists").to_dict()
    dots, second = marks(chart, "point")
    assert "fill" in dots["encoding"] and second["mark"]["shape"] == "diamond"
    assert second["encoding"]["x"]["field"] == "other"


def test_series_of_one_line_have_places_and_a_legend():
    rows = [{"series": name, "name": "6ND", "value": 0.5, "lo": 0.4, "hi": 0.6} for name in ("law", "isoflop")]
    point = marks(estimates(rows, ["law", "isoflop"], "a", "Exponent", dodge=True).to_dict(), "point")[0]["encoding"]
    assert point["yOffset"]["sort"] == ["law", "isoflop"] and point["color"]["scale"]["range"] == KINDS[:2]
    assert "legend" not in point["color"] or point["color"]["legend"] is not None


def test_values_of_few_columns_are_written_into_cells():
    axes = alt.X("head:O"), alt.Y("layer:O")
    for heads, texts in ((4, 1), (40, 0)):
        rows = pd.DataFrame({"head": range(heads), "layer": 0, "value": np.linspace(0, 1, heads), "data": "docs"})
        chart = heat_map(rows, *axes, "share", "T", domain=(0, 1), panel="data").to_dict()
        assert len(marks(chart, "text")) == texts and chart["facet"]["sort"] == ["docs"]
        assert marks(chart, "rect")[0]["encoding"]["color"]["scale"]["domain"] == [0, 1]


def test_a_scatter_has_the_line_of_equality_and_references_of_both_axes():
    points = Marks(rows=LAW.assign(law=[1.0, 2.0, 3.0]), points=40)
    chart = scatter([points], alt.X("law:Q"), Y, "T", references=(1.5, float("nan")), equality=True).to_dict()
    (ends,) = [table for table in chart["datasets"].values() if len(table) == 2]
    assert ends == [{"law": 1.0, "value": 1.0}, {"law": 3.0, "value": 3.0}]
    assert len(marks(chart, "rule")) == 1 and "x" in marks(chart, "rule")[0]["encoding"]


def test_the_shares_of_a_histogram_add_up_in_common_bins():
    chart = histogram({"train": [1.0, 1.5, 2.0], "held out": [1.2, 2.5]}, "loss", "share", "T").to_dict()
    (rows,) = chart["datasets"].values()
    for name in ("train", "held out"):
        assert sum(row["value"] for row in rows if row["kind"] == name) == pytest.approx(1.0)


def test_a_distribution_has_every_run():
    rows = pd.DataFrame(
        {"series": ["a", "a", "b"], "value": [1.0, 1.1, 3.0], "seed": [0, 1, 0], "hollow": [False, False, True]}
    )
    one = distribution(rows, ["a", "b"], "loss", "T").to_dict()
    assert "concat" not in one and len(one["datasets"].popitem()[1]) == 3
    two = distribution(rows.assign(panel=rows["series"]), ["a", "b"], "loss", "T").to_dict()
    assert [panel["title"] for panel in two["concat"]] == ["a", "b"]
