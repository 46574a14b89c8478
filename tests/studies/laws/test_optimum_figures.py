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
    optima = rows[rows["excess"] < -1e-6]
    assert len(optima) == optima["group"].nunique() == 6, "below the axis, where they hide no run"
    line = rows_of(charts["lr-N"](), "beyond")
    assert list(dict.fromkeys(line["series"])) == tokens, "a line for each number of tokens that the groups have"
    held = dict(zip(tokens, [1e8, 3e8, 8e8, 1e9, 2.4e9, 8e9], strict=True))
    exact = [planted_rate(N, held[name]) for N, name in zip(line["at"], line["series"], strict=True)]
    np.testing.assert_allclose(line["value"], exact, rtol=1e-3)
    assert list(figures(law.record, law.form, None)) == ["lr-N", "lr-D", "batch-D"]
    assert law.plot().to_dict() == charts["loss-lr"]().to_dict()
