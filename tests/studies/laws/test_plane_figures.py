"""Figures of a law of N and D: parabolas with their minima, lines of equal loss, and measured against predicted."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws import plane_figures
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.prediction import fitted_values

from .. import ladders

LAW = find("chinchilla")


@pytest.fixture
def profiles():
    """Five sizes at each of three budgets, with the lowest loss at the size 1e5 sqrt(C / 1e12)."""
    rows = []
    for C in (1e12, 4e12, 16e12):
        best = 1e5 * np.sqrt(C / 1e12)
        rows += [
            {"N": best * factor, "D": C / (6 * best * factor), "C": C, "loss": 2.0 - 0.1 * np.log(C / 1e12)
             + 0.05 * np.log(factor) ** 2, "run": f"{C}-{factor}", "stage": "main", "seed": 0}
            for factor in (0.25, 0.5, 1.0, 2.0, 4.0)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def datasets(chart):
    return [rows for rows in chart.to_dict()["datasets"].values() if rows]


def test_each_budget_has_a_parabola_with_its_minimum_at_the_best_size(profiles):
    assert plane_figures.has_budgets(profiles)
    chart = plane_figures.isoflop(profiles)
    (minima,) = [rows for rows in datasets(chart) if len(rows) == 3]
    assert [row["N"] for row in minima] == pytest.approx([1e5, 2e5, 4e5], rel=1e-6)
    assert not plane_figures.has_budgets(profiles.assign(C=np.geomspace(1e12, 1e20, len(profiles))))


def test_the_loss_is_equal_along_each_line(profiles):
    record = ladders.law_record(domain={"N": [1e4, 1e6], "D": [1e5, 1e8]})
    lines = max(datasets(plane_figures.contours(profiles, LAW, record)), key=len)
    levels = sorted({row["level"] for row in lines})
    step, places = float(np.diff([float(level) for level in levels]).mean()), {len(level) for level in levels}
    assert len(levels) > 2 and len(places) == 1 and f"{step:.0e}"[0] in "125", "round, with equally many decimals"
    assert [float(level) / step for level in levels] == pytest.approx([round(float(level) / step) for level in levels])
    for level in levels:
        on_line = [row for row in lines if row["level"] == level]
        inputs = {name: np.array([row[name] for row in on_line]) for name in ("N", "D")}
        assert LAW.predict(inputs, fitted_values(record))[0] == pytest.approx(float(level), rel=0.001)


def test_measured_and_predicted_losses_have_one_scale_and_the_equation_has_the_fitted_values(profiles):
    domain, formula = {"N": [1e4, 1e6], "D": [1e5, 1e8]}, "L = E + A N^-alpha + B D^-beta"
    record = ladders.law_record(domain=domain, formula=formula)
    spec = plane_figures.predicted(profiles, LAW, record).to_dict()
    text = plane_figures.equation(record)
    values = [f"{entry['value']:.3g}" for entry in record["params"].values()]
    assert all(value in text for value in values) and "alpha" not in text and "/N^" in text
    assert text in str(spec["title"]) and "dashed" in str(spec["title"]) and "hollow" not in str(spec["title"])
