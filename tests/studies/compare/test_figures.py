"""Figures of arms: every run and difference that they are given is drawn, with labels that do not overlap."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kleiber.charts.scatter import point_names
from kleiber.charts.theme import KINDS
from kleiber.studies.compare import figures
from kleiber.studies.compare.arms import Arm

ARMS = {
    "plain": Arm("plain", {0.01: {0: 3.0, 1: 3.1}, 0.1: {0: math.inf, 1: 4.0}}, 0.01, "", {"params": 5.0}),
    "changed": Arm("changed", {0.01: {0: 2.5, 1: 2.6}, 0.1: {0: 2.4, 1: 2.3}}, 0.1, "2 rates", {"params": 9.0}),
}


def drawn(chart, column):
    """The values of a column in the data of a chart, each once."""
    return {row[column] for table in chart.to_dict()["datasets"].values() for row in table if column in row}


def test_tuning_draws_every_finite_run_and_the_others_only_the_best_rate():
    assert drawn(figures.tuning(ARMS, "loss"), "value") == {2.3, 2.4, 2.5, 2.6, 3.0, 3.1, 4.0}
    chart = figures.side_by_side(ARMS, "loss")
    assert drawn(chart, "value") == {2.3, 2.4, 3.0, 3.1} and drawn(chart, "hollow") == {True, False}
    untuned = {name: replace(arm, untuned_because="1 rate") for name, arm in ARMS.items()}
    assert drawn(figures.side_by_side(untuned, "loss"), "hollow") == {False}, "a mark that all have tells nothing"


def test_arms_stand_apart_at_each_rate_and_their_names_do_not_repeat_that_of_their_panel():
    assert len(drawn(figures.tuning(ARMS, "loss"), "lr")) == 4, "two arms at two rates"
    assert drawn(figures.tuning({"plain": ARMS["plain"]}, "loss"), "lr") == {0.01, 0.1}
    arms = {f"A {name}": arm for name, arm in ARMS.items()} | {"B plain": ARMS["plain"]}
    chart = figures.tuning(arms, "loss", {name: name[0] for name in arms})
    assert drawn(chart, "series") == {"plain", "changed"}


def titles(chart):
    return [panel["title"] for panel in chart.to_dict()["concat"]]


@pytest.mark.slow
def test_arms_whose_measures_do_not_compare_are_drawn_in_panels_with_own_scales():
    arms = {**ARMS, "high_loss": replace(ARMS["plain"], name="high_loss", values_by_rate={0.01: {0: 50.0, 1: 51.0}})}
    panels = {"plain": "next tokens", "changed": "next tokens", "high_loss": "masked tokens"}
    chart = figures.tuning(arms, "loss", panels)
    assert titles(chart) == ["next tokens", "masked tokens"] and "high_loss" in drawn(chart, "series")
    domains = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for panel in chart.to_dict()["concat"]]
    assert domains[0][1] < 5 and domains[1][0] > 45
    texts = [title["text"] for title in titles(figures.side_by_side(arms, "loss", panels))]
    assert texts == ["next tokens", "masked tokens"]


def test_titles_claim_a_best_rate_and_intervals_only_where_there_are_any():
    one_rate = {name: replace(arm, values_by_rate={arm.best_lr: arm.best_values}) for name, arm in ARMS.items()}
    texts = [figures.side_by_side(arms, "loss").to_dict()["title"]["text"] for arms in (ARMS, one_rate)]
    assert ["best learning rate" in text for text in texts] == [True, False]
    gap = {"arm": "changed", "against": "plain", "equal": "training tokens", "value": -0.5, "lo": None, "hi": None}
    assert "interval" not in str(figures.differences({"loss": [gap]}, list(ARMS), 0.9).to_dict()["title"])


@pytest.mark.slow
def test_differences_have_the_names_of_both_arms_and_of_what_is_equal():
    gaps = [
        {"arm": "changed", "against": "plain", "equal": equal, "value": -0.5, "lo": lo, "hi": hi}
        for equal, lo, hi in (("training tokens", -0.6, -0.4), ("training time", None, None))
    ]
    chart = figures.differences({"loss": [], "accuracy (docs)": gaps}, list(ARMS), 0.9833, joint=True)
    names = drawn(chart, "name")
    assert names == {"changed, equal training tokens", "changed, equal training time"}
    assert "98.33% intervals" in str(title := chart.to_dict()["title"]) and "from plain" in str(title)
    assert (
        "accuracy (docs)" in chart.to_json() and drawn(chart, "value") == {-0.5} and drawn(chart, "reference") == {0.0}
    )
    two = figures.differences({"loss (code), nats": gaps[:1], "accuracy (docs)": gaps}, list(ARMS), 0.9).to_dict()
    headings = [panel["title"]["text"] for panel in two["concat"]]
    assert headings == ["Loss", "Accuracy"]
    further = {**gaps[0], "arm": "plain", "against": "changed"}
    pairs = figures.differences({"loss": [gaps[0], further]}, list(ARMS), 0.9)
    assert drawn(pairs, "name") == {"changed"}, "one pair has one direction"
    assert drawn(pairs, "value") == {-0.5, 0.5} and drawn(pairs, "hi") == {-0.4, 0.6}


def test_arms_that_do_not_compare_have_panels_of_their_own_and_no_difference():
    gap = {"equal": "training tokens", "value": -0.5, "lo": -0.6, "hi": -0.4}
    pairs = [("GPT", "Llama"), ("GPT", "BERT"), ("BERT", "ModernBERT")]
    gaps = [{**gap, "arm": arm, "against": against} for arm, against in pairs]
    panels = {"GPT": "next tokens", "Llama": "next tokens", "BERT": "masked", "ModernBERT": "masked"}
    chart = figures.differences({"loss": gaps}, list(panels), 0.9, panels=panels)
    assert drawn(chart, "name") == {"GPT \N{MINUS SIGN} Llama", "BERT \N{MINUS SIGN} ModernBERT"}
    assert [title["text"] for title in titles(chart)] == ["next tokens", "masked"]


def test_an_arm_stays_on_the_side_on_which_it_is_first():
    pairs = [("a", "b"), ("c", "a"), ("a", "d"), ("c", "d")]
    rows = [{"arm": arm, "against": against, "value": 1.0, "lo": 0.5, "hi": None} for arm, against in pairs]
    turned = figures.one_way(rows)
    assert [(row["arm"], row["against"]) for row in turned] == [("a", "b"), ("a", "c"), ("a", "d"), ("c", "d")]
    assert [(row["value"], row["lo"], row["hi"]) for row in turned[:2]] == [(1.0, 0.5, None), (-1.0, None, -0.5)]


def test_a_pair_of_arms_has_the_color_of_the_one_that_is_not_black():
    order = ["mixture of experts, width 64", "dense, width 64"]
    for arms in (order, order[::-1]):
        assert figures.pair_arm(dict(zip(("arm", "against"), arms, strict=True)), order) == order[0]


def test_ticks_of_sizes_are_apart():
    assert figures.spaced([1.0, 1.05, 1.2, 2.0], 0.1) == [1.0, 1.2, 2.0] and figures.spaced([], 0.1) == []


def test_equal_differences_at_several_equal_quantities_are_one_line():
    gap = {"arm": "changed", "against": "plain", "value": -0.5, "lo": -0.6, "hi": -0.4}
    gaps = [{**gap, "equal": equal} for equal in ("training tokens", "parameters")]
    chart = figures.differences({"loss": gaps}, list(ARMS), 0.9)
    assert drawn(chart, "name") == {"changed"}
    assert "at equal training tokens and parameters" in str(chart.to_dict()["title"])


@pytest.mark.slow
def test_differences_over_tokens_are_drawn_where_there_are_any():
    rows = [
        {"arm": "changed", "against": "plain", "tokens": tokens, "value": -0.1, "lo": -0.2, "hi": 0.0, "n": 3,
         **{f"{name} at equal time": clock for name in ("value", "lo", "hi")}}
        for tokens, clock in ((1e6, 0.3), (2e6, None))
    ]  # fmt: skip
    chart = figures.over_tokens(rows, list(ARMS), "loss", 0.9)
    assert drawn(chart, "value") == {-0.1, 0.3} and len(drawn(chart, "panel")) == 2
    color = chart.to_dict()["concat"][0]["layer"][1]["encoding"]["color"]["scale"]
    assert color["range"] == [KINDS[list(ARMS).index("changed")]], "the color of the arm in the other figures"
    order = ["plain", "first", "second", "third"]
    pairs = [("plain", "third"), ("plain", "first"), ("second", "plain"), ("second", "first")]
    several = [{**row, "arm": arm, "against": against} for row in rows for arm, against in pairs]
    color = figures.over_tokens(several, order, "loss", 0.9).to_dict()["concat"][0]["layer"][1]["encoding"]["color"][
        "scale"
    ]
    expected = {"plain - third": 3, "plain - first": 1, "second - plain": 2, "second - first": 4}
    assert dict(zip(color["domain"], color["range"], strict=True)) == {
        name.replace("-", "\N{MINUS SIGN}"): KINDS[place] for name, place in expected.items()
    }, "a further pair of an arm takes no color of another one"
    assert "a line ends where" in str(chart.to_dict()["title"]), "the pair has no length at equal time that it has else"
    whole = [{**row, "value at equal time": 0.3} for row in rows]
    assert "a line ends where" not in str(figures.over_tokens(whole, list(ARMS), "loss", 0.9).to_dict()["title"])
    places = drawn(figures.over_tokens(several, order, "loss", 0.9), "tokens")
    assert len(places) == 2 * len(pairs), "bars of pairs stand side by side"
    for panel in chart.to_dict()["concat"]:
        low, high = panel["layer"][0]["encoding"]["y"]["scale"]["domain"]
        assert low <= 0 <= high


def test_a_scatter_names_every_arm_at_its_place():
    rows = [{"arm": name, "params": arm.facts["params"], "loss": arm.mean} for name, arm in ARMS.items()]
    chart = figures.scatter(rows, list(ARMS), ("params", "parameters"), ("loss", "validation loss (nats per token)"))
    assert drawn(chart, "series") == set(ARMS) and drawn(chart, "x") == {5.0, 9.0}
    assert "nats per token" in chart.to_json()


def test_an_axis_that_begins_near_zero_has_no_negative_ticks():
    rows = [{"arm": name, "moe/dead": dead, "loss": 2.0} for name, dead in (("plain", 0.02), ("changed", 1.1))]
    chart = figures.scatter(rows, list(ARMS), ("moe/dead", "dead experts"), ("loss", "loss")).to_dict()
    low, high = chart["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert low == 0 and high > 1.1


def test_names_side_by_side_do_not_overlap_and_others_stay_at_their_places():
    places = pd.DataFrame({"x": [1.0, 1.1, 9.0], "y": [2.0, 2.001, 2.002], "series": ["a", "b", "c"]})
    names = point_names(
        pd.concat([places, pd.DataFrame({"x": [5.0], "y": [3.0], "series": ["d"]})]), "series", "x", "y"
    )
    heights = dict(zip(names.rows["series"], names.rows["at"], strict=True))
    room = 0.045 * (3.0 - 2.0)
    assert heights["a"] + heights["b"] == pytest.approx(4.001) and heights["c"] == 2.002 and heights["d"] == 3.0
    assert np.isclose(heights["b"], heights["a"] + room)
