"""The figures of a law show the numbers of its record, here that of the recorded ladder."""

import json

import numpy as np
import pandas as pd
import pytest
from small_run import REPOSITORY

pytest.importorskip("altair")
from kleiber.studies.law_report import misfit_tables
from kleiber.studies.laws import figures
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.prediction import fitted_values

RECORD = json.loads((REPOSITORY / "multirun/golden/laws.json").read_text())


def test_exponents_are_those_of_the_main_approaches():
    """An approach that only the accounting has would stretch the axis and not be drawn."""
    (rows,) = figures.exponents(RECORD).to_dict()["datasets"].values()
    assert {row["approach"] for row in rows} == {exponent["approach"] for exponent in RECORD["approaches"]}
    assert {row["approach"] for row in RECORD["accounting"]} > {row["approach"] for row in rows}


def test_the_axis_of_the_optimal_sizes_contains_their_intervals():
    points = [{"C": 1e12, "N": 1e5, "lo": 1e3, "hi": 1e7}, {"C": 1e13, "N": 3e5}]
    approaches = [{"approach": "2 isoflop", "a": 0.5, "lo": 0.4, "hi": 0.6, "points": points}]
    chart = figures.allocation({**RECORD, "allocation": [], "approaches": approaches}).to_dict()
    domains = [layer["encoding"]["y"]["scale"]["domain"] for layer in chart["layer"]]
    assert all(low <= 1e3 and high >= 1e7 for low, high in domains)


def test_an_approach_has_one_color_and_shape_and_the_parametric_one_is_black_as_the_law():
    approaches = ["1 envelope", "2 isoflop (interpolated)", "3 parametric"]
    every = [figures.approach_label(name) for name in approaches]
    few = every[1:2]
    for number in range(2):
        alone, among = (figures.approach_marks(names)[number].to_dict()["scale"]["range"] for names in (few, every))
        assert alone == among[1:2] and len(set(among)) == 3
    assert figures.approach_marks(every)[0].to_dict()["scale"]["range"][2] == "#000000"


@pytest.mark.slow
def test_200_sizes_are_drawn():
    N = np.repeat(np.geomspace(2e4, 2e6, 200), 4)
    rows = pd.DataFrame({"N": N, "D": np.tile(1e6 * 2.0 ** np.arange(4), 200), "loss": 3.0, "run": "a"})
    chart = figures.ladder(rows.assign(stage="b", seed=0), find("chinchilla"), RECORD).to_dict()
    assert 200 * 30 in {len(points) for points in chart["datasets"].values()}


MISFIT = {
    "found": True,
    "strata": [{"name": "slopes of trunks along D", "p_value": 3.8e-6}, {"name": "means of trunks", "p_value": 0.89}],
    "slopes": [{"N": 35552.0, "slope": 0.0043, "trunks": 3}, {"N": 938000.0, "slope": -0.0051, "trunks": 2}],
    "cells": [
        {"N": N, "D": D, "residual": residual, "runs": 2}
        for N, D, residual in [(938000.0, 2e6, 0.001), (938000.0, 4e6, -0.01), (35552.0, 2e6, 0.002)]
    ],
}


def test_a_misfit_is_told_by_size_above_the_residuals_and_in_a_table():
    text = figures.misfit_text({"lack_of_fit": MISFIT})
    assert "p = 4e-6" in text and "+0.43% at 35.6k" in text and "\N{MINUS SIGN}0.51% at 938k" in text
    (rows,) = misfit_tables({"lack_of_fit": MISFIT}).values()
    assert [row["parameters"] for row in rows] == [35552.0, 938000.0]
    assert rows[1] | {"parameters": 0} == {
        "parameters": 0, "at 2M tokens": "+0.10%", "at 4M tokens": "-1.00%", "per doubling of tokens": "-0.51%",
    }  # fmt: skip
    for record in ({}, {"lack_of_fit": {**MISFIT, "found": False}}):
        assert figures.misfit_text(record) == "" and misfit_tables(record) == {}


def test_the_figure_of_the_residuals_tells_the_misfit_of_the_recorded_ladder():
    law, cells = find("chinchilla"), pd.DataFrame(RECORD["lack_of_fit"]["cells"])
    predicted = law.predict({name: cells[name].to_numpy() for name in "ND"}, fitted_values(RECORD))[0]
    rows = cells.assign(C=0.0, loss=predicted * np.exp(cells["residual"]), run="a", stage="b", seed=0)
    chart = figures.residuals(rows, law, RECORD).to_dict()
    drawn = {row["percent"] for points in chart["datasets"].values() for row in points if "percent" in row}
    assert sorted(drawn) == pytest.approx(sorted(100 * cells["residual"])), "the figure and the record tell one fit"
    for row in (RECORD["lack_of_fit"]["slopes"][0], RECORD["lack_of_fit"]["slopes"][-1]):
        of_size = cells[cells["N"] == row["N"]]
        assert np.polyfit(np.log2(of_size["D"]), of_size["residual"], 1)[0] == pytest.approx(row["slope"], rel=1e-6)


def test_a_profile_crosses_its_threshold_where_the_figure_says_and_is_interpolated_as_its_interval():
    profiled = {"values": [0.001, 0.5, 1.0, 2.0], "statistic": [2.0, 1.0, 0.0, 16.0], "threshold": 4.0}
    chart = figures.profile({"profiles": {"E": profiled}, "level": 0.9}).to_dict()
    line = max(chart["datasets"].values(), key=len)
    above = [row["value"] for row in line if row["statistic"] > 2.0]
    assert min(above) == pytest.approx(2**0.5, rel=2e-3), "square roots are interpolated over log E"
    assert "up to 1.41" in str(chart["title"])


@pytest.mark.parametrize("cuts", [[1e12], [1e12, 4e12]])
def test_errors_of_backtests_are_sorted_or_lie_at_their_cuts(cuts):
    tests = [{"along": "C", "cut": cut, "mare": 0.01, "naive": {"last_rung": 0.1, "line": 0.05}} for cut in cuts]
    chart = figures.backtests({"backtests": tests}).to_dict()
    rows = [row for rows in chart["datasets"].values() for row in rows]
    if cuts[1:]:
        assert {row["cut"] for row in rows} == {*cuts}
    else:
        (dots,) = (layer for layer in chart["concat"][0]["layer"] if layer["mark"]["type"] == "point")
        assert dots["encoding"]["y"]["sort"] == ["fitted law", "log-log line", "loss of the nearest smaller run"]
        assert "rule" not in {layer["mark"]["type"] for layer in chart["concat"][0]["layer"]}
