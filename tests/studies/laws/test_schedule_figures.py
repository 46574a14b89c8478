"""The figure of a law of schedules: fitted rows with their losses, a line for each curve."""

import pytest

from kleiber.studies.fitted_law import fit
from kleiber.studies.laws.schedule_figures import MOST_CURVES, fitted, fitted_rows
from kleiber.studies.laws.schedule_table import curves_of
from tests.studies.laws.curves import curves


def test_every_row_has_its_observed_and_predicted_loss_and_few_curves_are_drawn():
    table = curves(every=100)
    law = fit(table, "schedule", map={"run": "schedule", "lr": "rate"}, bootstrap=50)
    assert law.rows is not None
    rows = fitted_rows(law.record, law.form, curves_of(law.rows))  # type: ignore[arg-type]
    assert set(rows["run"]) == {"constant", "cosine", "wsd", "step"} and len(rows) == 4 * 116
    assert rows["predicted"].to_numpy() == pytest.approx(rows["observed"].to_numpy(), rel=0.01)
    chart = fitted(rows).to_dict()
    assert "Loss vs step" in str(chart["title"]) and MOST_CURVES == 6
