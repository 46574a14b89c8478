"""Training curves over compute and their envelope."""

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run

pytest.importorskip("altair")

from chart_marks import marks

from kleiber.records.catalog import read_runs
from kleiber.studies.laws.envelope import envelope, lowest, smooth, training_curves

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


def test_curves_have_the_compute_and_the_losses_that_trunks_have_logged(tmp_path):
    write_run(tmp_path / "a", 1000, 0.1)
    write_run(tmp_path / "b", 2000, 0.2, status="diverged")
    curves = training_curves(read_runs(tmp_path), "active")
    assert set(curves["run"]) == {"a trunk"}, "neither a cooldown nor a run that did not finish"
    assert set(curves["N"]) == {1000} and curves["C"].max() == 6 * 1000 * 40_000
    np.testing.assert_allclose(curves["loss"], 5.0 * (np.array(curves["C"]) / 6e6) ** -0.1)


def test_runs_without_logged_losses_have_no_curve(tmp_path):
    fake_run(tmp_path / "a", [{}])
    assert training_curves(read_runs(tmp_path), "active").empty


def noisy_curves():
    generator = np.random.default_rng(0)
    steps = np.arange(1, 101)
    return pd.concat([
        pd.DataFrame({"run": f"{N} {seed}", "N": N, "C": N * steps, "loss": level * (N * steps) ** -slope
                      * np.exp(generator.normal(0, 0.1, len(steps)))})
        for N, level, slope in ((1.0, 3.0, 0.1), (8.0, 5.0, 0.25)) for seed in range(2)
    ])  # fmt: skip


def test_a_size_has_one_curve_that_follows_a_power_law_through_noise():
    curves = smooth(noisy_curves())
    for N, level, slope in ((1.0, 3.0, 0.1), (8.0, 5.0, 0.25)):
        of_size = curves[curves["N"] == N]
        assert of_size["C"].is_unique and of_size["C"].min() == pytest.approx(6 * N, rel=0.05), "from the sixth step"
        np.testing.assert_allclose(of_size["loss"], level * of_size["C"] ** -slope, rtol=0.1)


def test_the_envelope_never_rises_and_no_curve_dips_below_it():
    curves = smooth(noisy_curves())
    last = curves.index[curves["C"] == curves["C"].max()]
    curves.loc[last, "loss"] += 0.5  # as after a spike
    low = lowest(curves)
    assert (np.diff(low["loss"]) <= 0).all() and low["C"].is_monotonic_increasing
    for _, of_size in curves.groupby("N"):
        assert (of_size["loss"].to_numpy() >= np.interp(of_size["C"], low["C"], low["loss"]) - 1e-12).all()
    for budget in np.geomspace(7, 700, 20):
        assert low[low["C"] <= budget]["loss"].iloc[-1] == curves[curves["C"] <= budget]["loss"].min()


def test_the_figure_has_a_line_for_each_size_in_front_of_the_envelope(tmp_path):
    for name, params in (("a", 1000), ("b", 4000), ("c", 4000)):
        write_run(tmp_path / name, params, 0.1)
    chart = envelope(training_curves(read_runs(tmp_path), "active")).to_dict()
    low, curves = marks(chart, "line")
    assert low["encoding"]["color"]["value"] == "black" and low["mark"]["strokeWidth"] > curves["mark"]["strokeWidth"]
    assert curves["encoding"]["color"]["scale"]["domain"] == ["1k", "4k"]
