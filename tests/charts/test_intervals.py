"""Estimates with intervals: dots, bounds, second values, places of series."""

import pytest
from chart_marks import marks

pytest.importorskip("altair")

from kleiber.charts.intervals import BOUNDS, estimates
from kleiber.charts.theme import KINDS


@pytest.mark.slow
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


def test_a_bound_has_the_closed_side_of_its_interval_and_an_arrow_to_the_open_one():
    rows = [
        {"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "bound": bound}
        for name, bound in zip("abcd", ["", *BOUNDS], strict=True)
    ]
    chart = estimates(rows, "abcd", "nats", "Differences").to_dict()
    drawn = {row["bound"]: row for table in chart["datasets"].values() for row in table}
    ends = {name: (row["lo"], row["hi"]) for name, row in drawn.items()}
    assert ends == {"": (0.5, 1.5), "at most": (1.0, 1.5), "at least": (0.5, 1.0), "not bounded by": (None, None)}
    heads = [mark["mark"]["shape"] for mark in marks(chart, "point") if "shape" in mark["mark"]]
    assert heads == ["triangle-left", "triangle-right"]
    (word,) = marks(chart, "text")
    assert word["encoding"]["text"] == {"value": "undetermined"} and drawn["not bounded by"]["value"] is None
    assert all(text in str(chart["title"]["subtitle"]) for text in ("upper bound", "lower bound", "either side"))


@pytest.mark.parametrize("bound", ["at most", "at least"])
def test_an_arrow_has_room_on_its_side_of_the_axis(bound):
    rows = [
        {"series": name, "value": value, "lo": None, "hi": None, "bound": bound}
        for name, value in (("a", 0.0), ("b", 1.0))
    ]
    chart = estimates(rows, "ab", "nats", "Differences").to_dict()
    low, high = marks(chart, "point")[0]["encoding"]["x"]["scale"]["domain"]
    assert low < -0.1 if bound == "at most" else high > 1.1
    assert len(marks(chart, "rule")) == 1, "the arrow alone, without an interval"


def test_a_second_value_and_a_hollow_dot_are_drawn():
    rows = [{"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "hollow": name == "b", "other": 0.8} for name in "ab"]
    rows[0]["another"] = 0.6
    chart = estimates(rows, ["a", "b"], "loss", "Finalists").to_dict()
    another, second, dots = marks(chart, "point")
    assert "fill" in dots["encoding"] and second["mark"]["shape"] == "diamond"
    assert [mark["encoding"]["x"]["field"] for mark in (another, second)] == ["another", "other"]


def test_series_of_one_line_have_places_and_a_legend():
    rows = [{"series": name, "name": "6ND", "value": 0.5, "lo": 0.4, "hi": 0.6} for name in ("law", "isoflop")]
    point = marks(estimates(rows, ["law", "isoflop"], "a", "Exponent", dodge=True).to_dict(), "point")[0]["encoding"]
    assert point["yOffset"]["sort"] == ["law", "isoflop"] and point["color"]["scale"]["range"] == KINDS[:2]
    assert point["shape"]["scale"]["domain"] == ["law", "isoflop"], "series differ by more than color"
    assert "legend" not in point["color"] or point["color"]["legend"] is not None


def test_lines_are_sorted_by_effect_and_an_arrow_points_to_the_better_side():
    values = {"a": 0.3, "b": -0.2, "c": 0.1}
    rows = [
        {"series": name, "value": value, "lo": None, "hi": None, "better": "lower"} for name, value in values.items()
    ]
    encoding = marks(estimates(rows, [*values], "nats", "x", by_effect=True).to_dict(), "point")[0]["encoding"]
    assert (
        encoding["y"]["sort"] == ["b", "c", "a"]
        and encoding["x"]["title"] == "nats\N{EM SPACE}\N{LEFTWARDS ARROW} better"
    )
    higher = [{**row, "better": "higher"} for row in rows]
    encoding = marks(estimates(higher, [*values], "", "x").to_dict(), "point")[0]["encoding"]
    assert encoding["y"]["sort"] == [*values] and encoding["x"]["title"] == "better \N{RIGHTWARDS ARROW}"


@pytest.mark.slow
def test_panels_with_the_same_lines_name_them_once():
    def named(rows):
        panels = estimates(rows, "abc", "", "x", columns=2).to_dict()["concat"]
        return [marks(panel, "point")[0]["encoding"]["y"]["axis"].get("labels", True) for panel in panels]

    rows = [{"series": name, "value": 1.0, "lo": None, "hi": None, "panel": panel} for panel in "pqr" for name in "ab"]
    assert named(rows) == [True, False, True]
    assert named([*rows, {**rows[0], "series": "c"}]) == [True, True, True]


def test_a_symlog_axis_has_ticks_on_both_sides_of_0():
    rows = [{"series": name, "value": value, "lo": None, "hi": None} for name, value in {"a": -5.0, "b": 88.0}.items()]
    x = marks(estimates(rows, "ab", "%", "x", symlog=True).to_dict(), "point")[0]["encoding"]["x"]
    assert x["scale"]["type"] == "symlog" and x["axis"]["values"] == [-3, -1, 0, 1, 3, 10, 30, 100]


@pytest.mark.slow
def test_two_panels_of_lines_with_long_names_stand_one_below_the_other():
    def columns(name, panels):
        rows = [{"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "panel": panel} for panel in panels]
        return estimates(rows, [name], "nats", "Differences").to_dict()["columns"]

    long = "mixture of experts, width 64 - dense"
    assert [columns("dense", "ab"), columns(long, "ab"), columns(long, "abc"), columns(2 * long, "abc")] == [2, 1, 2, 1]
    rows = [
        {"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "panel": panel}
        for name, panel in (["ax", "bx", "cx", "dx", "ay", "by", "cy"])
    ]
    panels = estimates(rows, "abcd", "nats", "x").to_dict()["concat"]
    lines = [marks(panel, "point")[0]["encoding"]["y"] for panel in panels]
    assert [line.get("scale") for line in lines] == [None, None] and lines[0]["sort"] == ["a", "b", "c", "d"]
    assert [panel["height"] for panel in panels] == [90, 70], "a panel that lacks a line has no empty place"


def test_intervals_of_some_rows_have_end_caps():
    rows = [{"series": name, "value": 1.0, "lo": 0.5, "hi": 1.5, "capped": name == "b"} for name in "ab"]
    caps = [
        mark for mark in marks(estimates(rows, ["a", "b"], "loss", "Means").to_dict(), "point") if "transform" in mark
    ]
    assert [cap["encoding"]["x"]["field"] for cap in caps] == ["lo", "hi"]
    assert {cap["transform"][0]["filter"] for cap in caps} == {"datum.capped"}
