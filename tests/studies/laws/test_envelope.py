"""Training curves over compute and their envelope."""

import numpy as np
import pytest
from fake_run import fake_run

pytest.importorskip("altair")

from chart_marks import marks

from kleiber.records.catalog import read_runs
from kleiber.studies.laws.envelope import envelope, new_lows, training_curves

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


def test_the_envelope_falls_and_no_point_of_less_compute_lies_below_it():
    generator = np.random.default_rng(0)
    compute = np.exp(generator.uniform(0, 5, 300))
    loss = compute**-0.1 * np.exp(generator.uniform(0, 0.5, 300))
    lows = new_lows(compute, loss)
    assert (np.diff(compute[lows]) > 0).all() and (np.diff(loss[lows]) < 0).all()
    for budget in np.geomspace(compute.min(), compute.max(), 50):
        reached = loss[compute <= budget].min()
        assert loss[lows][compute[lows] <= budget][-1] == reached


def test_the_figure_has_a_line_for_each_stage_and_the_envelope(tmp_path):
    for name, params in (("a", 1000), ("b", 4000)):
        write_run(tmp_path / name, params, 0.1)
    chart = envelope(training_curves(read_runs(tmp_path), "active")).to_dict()
    curves, lows = marks(chart, "line")
    assert curves["encoding"]["detail"]["field"] == "run" and lows["encoding"]["color"]["value"] == "black"
    assert lows["mark"]["interpolate"] == "step-after"
