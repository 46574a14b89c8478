"""The record of a law of schedules: valid, read again, predicts curves and schedules, and refuses one schedule."""

import json

import jsonschema
import numpy as np
import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber.studies.fitted_law import SCHEMA, compare, fit, load, select_rows
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


def test_the_record_is_valid_and_has_a_test_for_each_schedule(law):
    jsonschema.validate(json.loads(json.dumps(law.record)), json.loads(SCHEMA.read_text()))
    chosen = [test for test in law.record["backtests"] if test["form"] == law.record["form"]]
    assert [test["name"] for test in chosen] == ["constant", "cosine", "step"]
    assert all(0 < test["mare"] < 0.02 and test["n_runs"] == 1 for test in chosen)
    assert law.record["scatter"]["inflation"] > 3  # the noise is correlated over nine rows
    assert all(value["lo"] < value["value"] < value["hi"] for value in law.params.values())
    assert "left out cosine" in str(law) and set(law.figures()) == {"fit"} and law.plot().to_dict()


def test_a_schedule_that_was_left_out_is_predicted_within_its_band(law, table, tmp_path, capsys):
    table.to_csv(tmp_path / "curves.csv", index=False)
    law.write(tmp_path / "laws.json")
    assert load(tmp_path / "laws.json").params == law.params
    command = ["predict", str(tmp_path / "laws.json"), "--on", str(tmp_path / "curves.csv"), "--map", MAP]
    assert main([*command, "--where", "schedule = wsd", "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    rows = content["predictions"]
    errors = np.array([row["value"] - row["observed"] for row in rows])
    assert content["mae"] == pytest.approx(np.abs(errors).mean()) and content["bias"] == pytest.approx(errors.mean())
    inside = np.mean([row["lo"] <= row["observed"] <= row["hi"] for row in rows])
    assert content["coverage"] == pytest.approx(inside) and content["coverage"] >= 0.9 and content["mae"] < 0.01
    assert all(row["lo"] <= row["law_lo"] <= row["value"] <= row["law_hi"] <= row["hi"] for row in rows)
    assert "1 curves" in capsys.readouterr().out


def test_a_table_of_rates_without_losses_is_predicted(law, table):
    rates = table[table["schedule"] == "wsd"].drop(columns="loss")
    content, lines = compare(law.record, law.form, select_rows(rates, ROLES, [], law.form, measured=False), 3.0)
    assert "mae" not in content and len(content["predictions"]) == len(rates) - 6  # but for the warm-up
    assert len(lines) == 1 and content["predictions"][-1]["lo"] < content["predictions"][-1]["value"]


def test_schedules_of_kleiber_and_tables_of_rates_are_predicted(law, table, tmp_path, capsys):
    law.write(tmp_path / "laws.json")
    command = ["predict", str(tmp_path / "laws.json"), "--schedule"]
    out = ["--json", str(tmp_path / "out.json")]
    assert main([*command, "wsd", "--steps", "12000", "warmup_steps=500", "final=0.05", *out]) == 0
    answer = json.loads((tmp_path / "out.json").read_text())
    assert answer["at"] == {"steps": 12000.0, "lr": pytest.approx(3e-4)} and answer["run_lo"] < answer["lo"]
    one = table[table["schedule"] == "wsd"].rename(columns={"rate": "lr"})[["step", "lr"]]
    one.to_csv(tmp_path / "rates.csv", index=False)
    assert main([*command, str(tmp_path / "rates.csv"), *out]) == 0
    same = json.loads((tmp_path / "out.json").read_text())
    assert same["value"] == pytest.approx(answer["value"], rel=2e-3) and len(same["curve"]) == 100
    wrong = (["wsd"], ["wsd", "--steps", "100", "lr=x"], ["none", "--steps", "100"], ["wsd", "--steps", "100000000"])
    assert [main([*command, *words]) for words in wrong] == [2, 2, 2, 2]
    assert [main(["predict", str(tmp_path / "laws.json"), word]) for word in ("N=1", "steps=5")] == [2, 2]
    assert "decades outside" in capsys.readouterr().err


def test_one_schedule_is_refused(table, tmp_path):
    table.to_csv(tmp_path / "curves.csv", index=False)
    command = ["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", MAP, "--where", "schedule = cosine"]
    assert main([*command, "--json", str(tmp_path / "laws.json")]) == 3
    record = json.loads((tmp_path / "laws.json").read_text())
    assert record["refused"] and "one_schedule" in {verdict["code"] for verdict in record["verdicts"]}
    assert not record["params"]["beta"]["identified"] and record["params"]["E"]["identified"]
    assert main(["predict", str(tmp_path / "laws.json"), "--schedule", "wsd", "--steps", "9000"]) == 3


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
        with pytest.raises(ValueError, match="'step' has [01] losses after its warm-up"):
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
