"""Forms of figures: colors, small multiples, scales of panels, and where intervals are drawn."""

import re

import pandas as pd
import pytest

pytest.importorskip("altair")
import altair as alt

from kleiber.charts.estimates import BOUNDS, estimates
from kleiber.charts.lines import arm_color, seed_lines
from kleiber.charts.matrix import matrix
from kleiber.charts.theme import span, values_axis


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
