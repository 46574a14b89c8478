"""The figure of a law of schedules: fitted rows with their losses, a line for each curve."""

import pytest

from kleiber_topics.schedules.law import MOST_CURVES, fitted
from kleiber_topics.schedules.prediction import predict_rows

from .planted import ROLES, curves, fit


def test_every_row_has_its_observed_and_predicted_loss_and_few_curves_are_drawn():
    table = curves(every=100)
    rows, measured = predict_rows(fit(table, bootstrap=50), table, ROLES)
    assert {row["run"] for row in rows} == {"constant", "cosine", "wsd", "step"} and len(rows) == 4 * 116
    assert [row["value"] for row in rows] == pytest.approx(measured, rel=0.01)
    chart = fitted(rows).to_dict()
    assert "Loss vs step" in str(chart["title"]) and MOST_CURVES == 6
