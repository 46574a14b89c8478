"""The record of a law of schedules: valid, with a test for each schedule; refuses what cannot decide."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber_topics.schedules.law import lines
from kleiber_topics.schedules.prediction import predict_rows, summarize

from .planted import curves, fit

MAP = "run=schedule,lr=rate"
PUBLISHED = {"25M": 0.0038, "100M": 0.0044}


@pytest.fixture(scope="module")
def table():
    return curves(noise=1e-3)


@pytest.fixture(scope="module")
def law(table):
    return fit(table[table["schedule"] != "wsd"], bootstrap=200)


@pytest.mark.slow
def test_the_record_has_a_test_for_each_schedule(law):
    chosen = [test for test in law["backtests"] if test["form"] == law["form"]]
    assert [test["name"] for test in chosen] == ["constant", "cosine", "step"]
    assert all(0 < test["mare"] < 0.02 and test["n_train"] == 2 for test in chosen)
    assert law["scatter"]["inflation"] > 3  # the noise is correlated over nine rows
    lo, hi = np.quantile(law["draws"], [0.05, 0.95], axis=0)
    assert all((lo < [*law["params"].values()]) & ([*law["params"].values()] < hi))
    assert any("left out cosine" in line for line in lines(law))


def test_one_schedule_is_refused(table, tmp_path):
    table.to_csv(tmp_path / "curves.csv", index=False)
    command = ["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", MAP, "--where", "schedule = cosine"]
    assert main([*command, "--json", str(tmp_path / "laws.json")]) == 3
    record = json.loads((tmp_path / "laws.json").read_text())
    assert record["refused"] and "one_schedule" in {verdict["code"] for verdict in record["verdicts"]}
    assert [line.split()[0] for line in lines(record)[2:]] == ["E", "A", "alpha", "noise"]
    assert main(["predict", str(tmp_path / "laws.json"), "--schedule", "wsd", "--steps", "9000"]) == 3


@pytest.mark.slow
def test_curves_of_one_size_are_fitted_and_reported(table, tmp_path):
    sizes = [table.assign(size=size, loss=table["loss"] + gap) for size, gap in (("a", 0.0), ("b", -0.3))]
    pd.concat(sizes).to_csv(tmp_path / "curves.csv", index=False)
    command = ["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", MAP]
    command += ["--report", str(tmp_path / "fit.html"), "--json", str(tmp_path / "laws.json")]
    assert main(command) == 2  # the steps of a run are repeated
    assert main([*command, "--where", "size = b"]) == 0
    assert main(["predict", str(tmp_path / "laws.json"), "--schedule", "wsd", "--steps", "9000"]) == 0
    assert "Loss vs step" in (tmp_path / "fit.html").read_text()


def test_a_run_without_losses_after_its_warm_up_is_refused_by_name(table):
    rising = table.assign(rate=np.where(table["schedule"] == "step", table["step"] * 1e-8, table["rate"]))
    lost = table.assign(loss=table["loss"].where(table["schedule"] != "step"))
    for wrong in (rising, lost):
        with pytest.raises(ValueError, match=r"'step' has [01] losses after its warm-up"):
            fit(wrong)


@pytest.mark.parametrize(
    "option", ["--delta=0.01", "--cluster=schedule", "--backtest=1e3", "--loss-fn=lad", "--rank", "--by=run"]
)
def test_options_without_effect_are_refused(table, tmp_path, option):
    table.to_csv(tmp_path / "curves.csv", index=False)
    assert main(["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", MAP, option]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_curves_are_predicted_as_well_as_published(shared, size):
    path = shared / "laws/multipower/curves.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/laws/multipower beside the checkout")
    curves, fitted = pd.read_csv(path), ("constant_24000", "cosine_24000")
    curves = curves[curves["size"] == size]
    law = fit(curves[curves["schedule"].isin(fitted)], roles={"run": "schedule"})
    content, _ = summarize(law, *predict_rows(law, curves[~curves["schedule"].isin(fitted)], {"run": "schedule"}))
    wsd = [row["mae"] for row in content["curves"] if row["run"].startswith("wsd")]
    assert not law["refused"] and len(wsd) == 5 and np.mean(wsd) <= PUBLISHED[size]
    assert len(content["curves"]) == 7 and sum(row["held"] for row in content["curves"]) >= 6
