"""The record of a law of schedules: valid, with a test for each schedule; refuses what cannot decide."""

import json

import jsonschema
import numpy as np
import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber.studies.fitted_law import SCHEMA, compare, fit, select_rows
from tests.studies.laws.curves import curves

MAP = "run=schedule,lr=rate"
ROLES = {"run": "schedule", "lr": "rate"}
PUBLISHED = {"25M": 0.0038, "100M": 0.0044}


@pytest.fixture(scope="module")
def table():
    return curves(noise=1e-3)


@pytest.fixture(scope="module")
def law(table):
    return fit(table[table["schedule"] != "wsd"], "schedule", map=ROLES, bootstrap=200)


@pytest.mark.slow
def test_the_record_is_valid_and_has_a_test_for_each_schedule(law):
    jsonschema.validate(json.loads(json.dumps(law.record)), json.loads(SCHEMA.read_text()))
    chosen = [test for test in law.record["backtests"] if test["form"] == law.record["form"]]
    assert [test["name"] for test in chosen] == ["constant", "cosine", "step"]
    assert all(0 < test["mare"] < 0.02 and test["n_runs"] == 1 for test in chosen)
    assert law.record["scatter"]["inflation"] > 3  # the noise is correlated over nine rows
    assert all(value["lo"] < value["value"] < value["hi"] for value in law.params.values())
    assert "left out cosine" in str(law) and set(law.figures()) == {"fit"} and law.plot().to_dict()


def test_one_schedule_is_refused(table, tmp_path):
    table.to_csv(tmp_path / "curves.csv", index=False)
    command = ["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", MAP, "--where", "schedule = cosine"]
    assert main([*command, "--json", str(tmp_path / "laws.json")]) == 3
    record = json.loads((tmp_path / "laws.json").read_text())
    assert record["refused"] and "one_schedule" in {verdict["code"] for verdict in record["verdicts"]}
    assert not record["params"]["beta"]["identified"] and record["params"]["E"]["identified"]
    assert main(["predict", str(tmp_path / "laws.json"), "--schedule", "wsd", "--steps", "9000"]) == 3


@pytest.mark.slow
def test_tables_of_several_sizes_are_split_and_reported(table, tmp_path):
    sizes = [table.assign(size=size, loss=table["loss"] + gap) for size, gap in (("a", 0.0), ("b", -0.3))]
    pd.concat(sizes).to_csv(tmp_path / "curves.csv", index=False)
    command = [
        "fit",
        str(tmp_path / "curves.csv"),
        "--law",
        "schedule",
        "--map",
        MAP,
        "--json",
        str(tmp_path / "laws.json"),
    ]
    assert main(command) == 2  # the steps of a run are repeated
    assert main([*command, "--by", "size", "--report", str(tmp_path / "fit.html")]) == 0
    laws = json.loads((tmp_path / "laws.json").read_text())["laws"]
    assert laws["a"]["params"]["E"]["value"] - laws["b"]["params"]["E"]["value"] == pytest.approx(0.3, abs=0.1)
    assert main(["predict", str(tmp_path / "laws.json"), "size=b", "--schedule", "wsd", "--steps", "9000"]) == 0
    assert "Loss vs step" in (tmp_path / "fit.html").read_text()


def test_a_run_without_losses_after_its_warm_up_is_refused_by_name(table):
    rising = table.assign(rate=np.where(table["schedule"] == "step", table["step"] * 1e-8, table["rate"]))
    lost = table.assign(loss=table["loss"].where(table["schedule"] != "step"))
    for wrong in (rising, lost):
        with pytest.raises(ValueError, match=r"'step' has [01] losses after its warm-up"):
            fit(wrong, "schedule", map=ROLES)


@pytest.mark.parametrize("option", ["--delta=0.01", "--cluster=schedule", "--backtest=1e3", "--loss-fn=lad", "--rank"])
def test_options_without_effect_are_refused(table, tmp_path, option):
    table.to_csv(tmp_path / "curves.csv", index=False)
    assert main(["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", MAP, option]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_curves_are_predicted_as_well_as_published(shared, size):
    path = shared / "laws/multipower/curves.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/laws/multipower beside the checkout")
    fitted = "schedule in [constant_24000, cosine_24000]"
    law = fit(path, "schedule", map={"run": "schedule"}, where=[f"size = {size}", fitted])
    rows = select_rows(path, {"run": "schedule"}, [f"size = {size}", f"not ({fitted})"], law.form)
    content, _ = compare(law.record, law.form, rows, 3.0)
    wsd = [row["mae"] for row in content["curves"] if row["run"].startswith("wsd")]
    assert law.accepted and len(wsd) == 5 and np.mean(wsd) <= PUBLISHED[size]
    assert len(content["curves"]) == 7 and sum(row["held"] for row in content["curves"]) >= 6
