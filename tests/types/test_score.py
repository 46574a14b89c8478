"""What a class declares of its metrics reaches their scores, by name or by pattern, and survives a file."""

import json
import math

import pytest

from kleiber.types.score import Metric, Score, described, find_metric, values_of, variants

METRICS = {
    "loss": Metric("loss", "lower", "nats"),
    "loss/{group}": Metric("loss of {group}", "lower", "nats"),
    "kind{n}/rep_{m}": Metric("share of repeated {m}-grams of kind {n}", "lower"),
    "a.b": Metric("dotted", "none"),
}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("loss", "loss"), ("loss/old_ones", "loss of old ones"), ("kind3/rep_2", "share of repeated 2-grams of kind 3"),
        ("loss/a/b", None), ("loss/", None), ("kind3/rep_", None), ("losses", None), ("a.b", "dotted"), ("axb", None),
    ],
)  # fmt: skip
def test_a_metric_is_found_by_its_name_or_by_a_pattern_without_slashes(name, label):
    metric = find_metric(METRICS, name)
    assert (metric and metric.label) == label


def test_a_name_comes_before_a_pattern():
    assert find_metric({"x/{n}": Metric("any", "none"), "x/one": Metric("first", "lower")}, "x/one").label == "first"


def test_a_score_is_described_once_and_keeps_its_numbers_and_a_unit_of_its_own():
    score = described(Score(1.0, 0.5, 1.5, 9), METRICS, "loss/a", "on docs")
    assert score == Score(1.0, 0.5, 1.5, 9, "nats", "lower", "loss of a on docs")
    assert described(score, {}, "other", "elsewhere") is score
    assert described(Score(1.0, unit="bits"), METRICS, "loss").unit == "bits"
    assert described(Score(1.0), METRICS, "no_such/name", "on docs") == Score(1.0, label="no such, name on docs")


def test_variants_have_the_name_and_the_label_of_each_metric_in_place_of_the_star():
    assert variants({"loss": METRICS["loss"]}, "{method}/*", "* with {method}") == {
        "{method}/loss": Metric("loss with {method}", "lower", "nats")
    }


@pytest.mark.parametrize("value", [1.5, math.nan])
def test_a_score_comes_back_from_a_file_where_nan_is_null(value):
    score = Score(value, None, 2.0, 3, "nats", "lower", "loss")
    written = json.loads(json.dumps(score.to_json() | {"value": None if math.isnan(value) else value}))
    again = Score.from_json(written)
    assert again.to_json() | {"value": 0} == score.to_json() | {"value": 0}
    assert values_of({"a": again})["a"] == pytest.approx(value, nan_ok=True)
