"""Training curves over compute and their lower hull."""

import numpy as np
import pytest
from fake_run import fake_run

pytest.importorskip("altair")

from chart_marks import marks

from kleiber.records.catalog import read_runs
from kleiber.studies.laws.envelope import envelope, lower_hull, training_curves

STEPS = range(1, 41)


def write_run(folder, params, slope, status="finished"):
    """A trunk of 40 steps of 1,000 tokens with a cooldown of 20 more, whose losses are powers of the tokens."""
    stages = [
        {"name": "trunk", "params": params, "tokens": 40_000},
        {"name": "60K", "parent": "trunk", "params": params, "tokens": 60_000},
    ]
    rows = [
        {"stage": name, "step": step, "train/tokens": 1e3 * step, "train/loss": 5.0 * (before + step) ** -slope}
        for name, before, steps in (("trunk", 0, 40), ("60K", 40, 20))
        for step in range(1, steps + 1)
    ]
    fake_run(folder, stages, rows=rows, status=status)


def test_curves_have_the_compute_of_their_path_and_the_losses_that_were_logged(tmp_path):
    write_run(tmp_path / "a", 1000, 0.1)
    write_run(tmp_path / "b", 2000, 0.2, status="diverged")
    curves = training_curves(read_runs(tmp_path), "active")
    assert set(curves["run"]) == {"a trunk", "a 60K"} and set(curves["N"]) == {1000}
    cooldown = curves[curves["run"] == "a 60K"]
    assert cooldown["C"].between(6 * 1000 * 40_000, 6 * 1000 * 60_000).all(), "a cooldown begins where its trunk was"
    exact = 5.0 * (np.array(cooldown["C"]) / 6e6) ** -0.1
    np.testing.assert_allclose(cooldown["loss"], exact, rtol=2e-3)


def test_runs_without_logged_losses_have_no_curve(tmp_path):
    fake_run(tmp_path / "a", [{}])
    assert training_curves(read_runs(tmp_path), "active").empty


def test_the_hull_lies_below_all_points_and_falls():
    generator = np.random.default_rng(0)
    compute = np.exp(generator.uniform(0, 5, 300))
    loss = compute**-0.1 * np.exp(generator.uniform(0, 0.5, 300))
    hull = lower_hull(compute, loss)
    x, y = np.log(compute[hull]), np.log(loss[hull])
    assert (np.diff(x) > 0).all() and (np.diff(y) < 0).all()
    slopes = np.diff(y) / np.diff(x)
    assert (np.diff(slopes) > 0).all(), "convex"
    inside = (np.log(compute) >= x[0]) & (np.log(compute) <= x[-1])
    assert (np.log(loss[inside]) >= np.interp(np.log(compute[inside]), x, y) - 1e-12).all()


def test_the_figure_has_a_line_for_each_stage_and_the_hull(tmp_path):
    for name, params in (("a", 1000), ("b", 4000)):
        write_run(tmp_path / name, params, 0.1)
    chart = envelope(training_curves(read_runs(tmp_path), "active")).to_dict()
    curves, hull = marks(chart, "line")
    assert curves["encoding"]["detail"]["field"] == "run" and hull["encoding"]["color"]["value"] == "black"
    assert marks(chart, "point")
