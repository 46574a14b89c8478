"""Predictions of a law of schedules: curves that were left out, schedules of kleiber, and tables of rates."""

import json

import numpy as np
import pytest

from kleiber.launch.cli import main
from kleiber.studies.laws import laws_json
from kleiber_topics.schedules.prediction import ScheduleRecord, predict_rows, summarize

from .planted import ROLES, curves, fit

MAP = "run=schedule,lr=rate"


@pytest.fixture(scope="module")
def table():
    return curves(noise=1e-3)


@pytest.fixture(scope="module")
def law(table):
    return fit(table[table["schedule"] != "wsd"], bootstrap=200)


def test_a_schedule_that_was_left_out_is_predicted_within_its_band(law, table, tmp_path, capsys):
    table.to_csv(tmp_path / "curves.csv", index=False)
    laws_json.write(law, tmp_path / "laws.json")
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
    rows, measured = predict_rows(law, rates, ROLES)
    content, lines = summarize(law, rows, measured)
    assert "mae" not in content and len(rows) == len(rates) - 6  # but for the warm-up
    assert len(lines) == 1 and rows[-1]["lo"] < rows[-1]["value"]


@pytest.mark.slow
def test_schedules_of_kleiber_and_tables_of_rates_are_predicted(law, table, tmp_path, capsys):
    laws_json.write(law, tmp_path / "laws.json")
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


@pytest.mark.parametrize(
    "change",
    [{"form": "cubic"}, {"params": {"E": 1.0}}, {"draws": [[1.0]]}, {"domain": {}}, {"scatter": {"noise": 1.0}}],
)
def test_a_damaged_record_is_refused(law, change):
    whole = law | {"roles": ROLES}
    assert ScheduleRecord.model_validate_json(json.dumps(whole)).form == law["form"]
    with pytest.raises(ValueError):
        ScheduleRecord.model_validate_json(json.dumps(whole | change))
