"""Lines over an axis: colors, panels, scales, ends."""

import re

import numpy as np
import pandas as pd
import pytest
from chart_marks import marks

pytest.importorskip("altair")
import altair as alt

from kleiber.charts.series import Marks, arm_color, end_names, lines, seed_lines, separate_labels, set_apart
from kleiber.charts.theme import WIDTH


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
        widths = [line["mark"]["strokeWidth"] for line in marks(panel, "line")]
        assert widths[0] > widths[1], "the reference is a broad line behind the other"
        assert all(point["encoding"].get("shape", {}).get("legend", None) is None for point in marks(panel, "point"))
    assert ("gray: arm 0" in str(drawn["title"])) == (panels > 0)


def test_panels_that_do_not_compare_have_scales_colors_and_legends_of_their_own():
    rows = [("low", "a", 1.0), ("low", "b", 2.0), ("high", "c", 8.0), ("high", "d", 9.0)]
    rows = pd.DataFrame([(*row, x) for row in rows for x in (1, 2)], columns=["panel", "series", "value", "x"])
    drawn = seed_lines(rows, alt.X("x:Q"), "loss", [*"abcd"], "Loss vs x", own_scales=True).to_dict()
    assert drawn["resolve"]["scale"] == {"color": "independent", "shape": "independent"}
    points = [marks(panel, "point")[0]["encoding"] for panel in drawn["concat"]]
    assert [point["color"]["scale"]["domain"] for point in points] == [["a", "b"], ["c", "d"]]
    assert points[0]["y"]["scale"]["domain"][1] < points[1]["y"]["scale"]["domain"][0]


@pytest.mark.parametrize("log", [False, True])
def test_panels_of_a_measure_have_one_scale(log):
    rows = pd.DataFrame({"series": "a", "x": [1, 2] * 2, "panel": ["low"] * 2 + ["high"] * 2, "value": [1, 2, 3, 8.0]})
    panels = seed_lines(rows, alt.X("x:Q"), "share", ["a"], "Share vs x", log=log).to_dict()["concat"]
    domains = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for panel in panels]
    assert domains[0] == domains[1] and domains[0][0] <= 1 and domains[0][1] >= 8


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


def test_bars_of_some_rows_have_end_caps():
    chart = lines([Marks(rows=LAW.assign(capped=LAW["x"] < 2), bars=1.0)], X, Y, "Loss vs x").to_dict()
    caps = marks(chart, "point")
    assert [cap["encoding"]["y"]["field"] for cap in caps] == ["lo", "hi"]
    assert {cap["transform"][0]["filter"] for cap in caps} == {"datum.capped"}


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


def test_one_panel_alone_is_a_figure_of_full_width_and_its_name_is_in_the_subtitle():
    rows = pd.DataFrame({"x": [1.0, 2.0], "value": [3.0, 2.0], "panel": "muP"})
    chart = lines([Marks(rows=rows, line=1)], alt.X("x:Q"), alt.Y("value:Q"), "Loss", panel="panel").to_dict()
    assert "concat" not in chart and chart["title"]["subtitle"] == "muP" and chart["width"] == WIDTH


def test_names_beside_lines_are_separated_and_move_as_little_as_possible():
    values = np.array([4.16, 2.0, 4.159, 4.158])
    moved = separate_labels(values, 0.1)
    assert np.diff(np.sort(moved)).min() >= 0.1 - 1e-12 and np.argsort(moved).tolist() == [1, 3, 2, 0]
    assert moved[1] == 2.0, "a label with enough room does not move"
    assert abs((moved - values).sum()) < 1e-9, "others move up and down alike"


def test_a_name_has_a_white_halo_and_is_in_front_of_all_tables():
    named = Marks(rows=LAW.assign(size="a"), name="size")
    layers = lines([named, Marks(rows=LAW, line=1.0)], X, Y, "Loss vs x", reference=2.0).to_dict()["layer"]
    assert [layer["mark"]["type"] for layer in layers] == ["rule", "line", "text", "text"]
    halo, text = (layer["mark"] for layer in layers[-2:])
    assert (halo["stroke"], text.get("stroke")) == ("white", None) and halo["dx"] == text["dx"]


def test_points_of_several_series_at_one_place_are_set_apart_around_it():
    rows = pd.DataFrame({"at": 100.0, "series": ["a", "b", "c"]})
    assert set_apart(rows, "at", "series", ["a", "b", "c"], 1.1)["at"].tolist() == pytest.approx([100 / 1.1, 100, 110])
    assert set_apart(rows[:1], "at", "series", ["a"], 1.1)["at"].tolist() == [100]
