"""The figures of a hyperparameter law: every run and group is drawn, and the law passes through exact optima."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.fitted_law import fit
from kleiber.studies.laws.optimum_figures import figures
from tests.studies.laws.sweeps import ROLES, planted_rate, sweep


def rows_of(chart, key: str) -> pd.DataFrame:
    """The first data set of a chart that has the column."""
    return pd.DataFrame(next(rows for rows in chart.to_dict()["datasets"].values() if key in rows[0]))


@pytest.mark.slow
def test_figures_show_the_groups_and_the_law():
    law = fit(sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 80], noise=0.0), "hyperparameter", map=ROLES, bootstrap=40)
    charts = law.figures()
    assert list(charts) == ["loss-lr", "loss-batch", "lr-N", "lr-D", "batch-D"]
    losses = charts["loss-lr"]().to_dict()
    rows = pd.DataFrame([row for part in losses["datasets"].values() for row in part])
    assert rows["group"].nunique() == len(rows[["size", "tokens"]].drop_duplicates()) == 6, "a color in a panel each"
    assert [panel["title"] for panel in losses["concat"]] == ["10M parameters", "30M parameters", "100M parameters"]
    tokens = ["100M", "300M", "800M", "1B", "2.4B", "8B"]
    assert losses["concat"][0]["layer"][0]["encoding"]["color"]["scale"]["domain"] == tokens
    optima = rows[~rows["excess"].astype(bool)]
    assert len(optima) >= 6 and optima["group"].nunique() == 6
    line, held = rows_of(charts["lr-N"](), "beyond"), float(np.exp(np.log(np.outer([1e7, 3e7, 1e8], [10, 80])).mean()))
    np.testing.assert_allclose(line["value"], [planted_rate(N, held) for N in line["at"]], rtol=1e-3)
    assert list(figures(law.record, law.form, None)) == ["lr-N", "lr-D", "batch-D"]
    assert law.plot().to_dict() == charts["loss-lr"]().to_dict()
