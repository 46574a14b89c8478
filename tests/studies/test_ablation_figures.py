"""Figures of an ablation: a scale has a point if seeds have its gap, and arms are in the order of their gaps."""

import math
from dataclasses import replace

import pytest

from kleiber.studies.ablation import Change
from kleiber.studies.ablation_figures import arms_figure, gap_figure, scale_rows
from kleiber.studies.ablation_ladder import Scale, ladder_of, predict


def change(name, gap):
    """A change at three scales of the fit and two held-out ones, of which the last has no gap."""
    plain = {0: 1.0, 1: 1.01, 2: 0.99}
    changed = {seed: loss + gap + 1e-4 * seed for seed, loss in plain.items()}
    computes = (1e13, 1e14, 1e15, 4e15)
    scales = [Scale(32 * k, 1e6, C, plain, changed, (0.02, 0.04)) for k, C in enumerate(computes, start=1)]
    diverged = Scale(160, 1e6, 1e17, plain, {}, (0.02, 0.02), (), {name: [0, 1, 2]})
    ladder = ladder_of(scales[:3])
    predictions = {times: predict(ladder, times, 0.9) for times in (1.0, 10.0)}
    return Change(name, scales[:3], [scales[3], diverged], ladder, predictions)


def test_a_scale_without_a_gap_has_no_row():
    rows = scale_rows(change("a", -0.02), 0.9)
    assert [(row["width"], row["fitted"]) for row in rows] == [(32, "yes"), (64, "yes"), (96, "yes"), (128, "held out")]
    assert {row["rate of the changed arm"] for row in rows} == {0.04}


def test_the_gap_is_drawn_in_percent_with_its_line_up_to_the_largest_prediction():
    drawn = change("no_qk_norm", -0.02)
    assert drawn.ladder is not None
    chart = gap_figure(drawn, drawn.ladder, "plain", 0.9).to_dict()
    assert "no QK-norm relative to plain" in chart["title"]["text"] and "loss relative to plain (%)" in str(chart)
    (points,) = [rows for rows in chart["datasets"].values() if "fitted" in rows[0]]
    (line,) = [rows for rows in chart["datasets"].values() if len(rows) == 60]
    assert points[0]["gap"] == pytest.approx(100 * math.expm1(-0.0199)) and line[-1]["compute"] == pytest.approx(1e16)


def test_arms_are_in_the_order_of_their_gaps():
    chart = arms_figure([change("relu2", 0.01), change("no_qk_norm", -0.02)], 10.0, "plain", 0.8).to_dict()
    assert "['no QK-norm', 'ReLU²']" in str(chart) and "80% intervals" in str(chart["title"]["subtitle"])


def points(chart):
    """The rows of the points of a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows if "series" in row]


def test_a_held_out_scale_has_its_prediction_and_what_was_measured_there():
    drawn = change("relu2", 0.01)
    rows = points(arms_figure([drawn], 10.0, "plain", 0.8))
    assert len(rows) == 3 and "4 times" in rows[1]["series"]
    assert rows[2]["value"] == pytest.approx(100 * math.expm1(0.0101))
    (_, predicted) = points(arms_figure([replace(drawn, held_out=[])], 10.0, "plain", 0.8))
    assert "10 times" in predicted["series"]
