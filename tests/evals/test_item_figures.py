"""Figures of scores: each shows what it has numbers for."""

from __future__ import annotations

import pytest

from kleiber.evals.item_figures import gap_chart, position_chart, score_figures

SCORE = {"value": 0.6, "lo": 0.5, "hi": 0.7, "n": 10}
CHANCE = {"value": 0.5, "lo": None, "hi": None, "n": 10}


@pytest.mark.slow
def test_accuracy_and_margin_have_a_figure_where_they_were_measured():
    both = {"blimp/x": {"accuracy": SCORE, "margin_per_byte": SCORE, "chance": CHANCE}, "lambada": {"accuracy": SCORE}}
    charts = score_figures(both)
    assert set(charts) == {"accuracy", "margin"}
    (rows,) = [data for data in charts["margin"].to_dict()["datasets"].values() if "name" in data[0]]
    assert [row["name"] for row in rows] == ["blimp/x"]
    assert set(score_figures({"lambada": {"accuracy": SCORE}})) == {"accuracy"} and score_figures({}) == {}


def test_gaps_are_sorted():
    scores = {"b": {"gap": SCORE}, "a": {"gap": {**SCORE, "value": 0.1}}, "own": {"bits_per_byte": SCORE}}
    (chart,) = gap_chart(scores).values()
    (rows,) = [data for data in chart.to_dict()["datasets"].values() if "name" in data[0]]
    assert [row["name"] for row in rows] == ["a", "b"] and gap_chart({"own": {}}) == {}


def test_positions_have_a_line_for_each_data_set():
    (chart,) = position_chart({"a": {1: 3.0, 2: 2.0}, "b": {1: 3.5}}).values()
    (rows,) = chart.to_dict()["datasets"].values()
    assert {(row["data"], row["position"]) for row in rows} == {("a", 1), ("a", 2), ("b", 1)} and position_chart(
        {}
    ) == {}
