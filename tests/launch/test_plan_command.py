"""`kleiber plan`: the size of the least predicted loss, its forecast on disk before training, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kleiber.launch import plan_command, price
from kleiber.launch.cli import main
from kleiber.launch.main import compose_config
from kleiber.records.folder import config_hash
from kleiber.records.forecast import find_forecast
from kleiber.studies.laws.laws_json import read
from kleiber.studies.laws.prediction import predict

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def speed(monkeypatch):
    """Measures nothing: a device computes 4e10 FLOPs in a second, and 10 seconds pass before the first step."""

    def estimate(configs, threads, describe=False):
        cells = []
        for config in configs.values():
            active = round(26.0 * config["model"]["width"] ** 2 + 9000)
            per_token = 6 * active / 4e10
            tokens = int(config["budget"]["tokens"])
            cells.append(
                {"active": active, "tokens": tokens, "seconds": 8 + tokens * per_token, "seconds_per_token": per_token}
            )
        return {"cells": cells, "start": 2.0, "unmeasured": None}

    monkeypatch.setattr(price, "estimate_costs", estimate)


def plan(folder, *words):
    """The exit code of the command in a folder."""
    os.chdir(folder)
    return main(["plan", *words])


def planned(folder, *words):
    """The forecast that the command has written into a folder."""
    assert plan(folder, *words) == 0
    return json.loads((folder / "forecast.json").read_text())


@pytest.fixture(autouse=True)
def _back(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_more_hours_give_a_larger_model_more_tokens_and_a_smaller_loss(speed, tmp_path, capsys):
    short, long = planned(tmp_path, "--hours", "0.1"), planned(tmp_path, "--hours", "2")
    assert short["params"] < long["params"] and short["tokens"] < long["tokens"]
    assert short["predicted"]["value"] > long["predicted"]["value"]
    for forecast in (short, long):
        predicted = forecast["predicted"]
        assert predicted["lo"] < predicted["law_lo"] < predicted["value"] < predicted["law_hi"] < predicted["hi"]
        assert forecast["speed"]["seconds"] <= 3600 * forecast["hours"]
        assert config_hash(compose_config(forecast["overrides"]))[:8] == forecast["config_hash"]
        assert f"budget.tokens={forecast['tokens']}" in forecast["overrides"]
    assert capsys.readouterr().out.strip().endswith(long["command"])


@pytest.mark.slow
def test_the_size_is_the_best_of_its_neighbors_and_devices_add_up(speed, tmp_path):
    forecast = planned(tmp_path, "--hours", "1")
    record, form = plan_command.read_law(None)
    found = plan_command.candidates(plan_command.check_overrides([]), 1.0, 1, record, form)
    losses = [predict(record, form, {"N": float(each.params), "D": float(each.tokens)})["value"] for each in found]
    assert forecast["predicted"]["value"] == min(losses) and 0 < losses.index(min(losses)) < len(losses) - 1
    double = planned(tmp_path, "--hours", "1", "--devices", "2")
    assert "trainer.devices=2" in double["overrides"]
    assert double["speed"]["tokens_per_s"] * double["params"] == pytest.approx(8e10 / 6)


def test_overrides_replace_the_recipe_and_a_width_is_kept(speed, tmp_path):
    forecast = planned(tmp_path, "--hours", "1", "optimizer.lr=0.01", "model.width=64", "--out", "forecast.json")
    assert forecast["lr"] == 0.01 and "model.width=64" in forecast["overrides"]
    assert not any(line.startswith("optimizer.lr=0.015") for line in forecast["overrides"])


@pytest.mark.parametrize(
    "words",
    [("--hours", "0"), ("--hours", "nan"), ("budget.tokens=1M",), ("stages=trunk_and_cooldowns",), ("--hours", "0.002"),
     ("--laws", "none.json"), ("optimizer.lr=0.01", "optimizer.lr=0.02"), ("model.widht=64",)],
)  # fmt: skip
def test_a_plan_that_cannot_be_made_is_refused(speed, tmp_path, words):
    assert plan(tmp_path, *words) == 2 and not (tmp_path / "forecast.json").exists()


def test_an_unknown_speed_is_said(monkeypatch, tmp_path, capsys):
    cell = {"active": 1, "tokens": 1, "seconds": None, "seconds_per_token": None}
    unknown = {"cells": [cell] * 7, "start": 0.0, "unmeasured": "no core is free"}
    monkeypatch.setattr(price, "estimate_costs", lambda configs, threads: unknown | {"cells": [cell] * len(configs)})
    assert plan(tmp_path) == 2 and "the speed of this machine is unknown: no core is free" in capsys.readouterr().err


def test_the_packaged_law_is_that_of_golden():
    packaged, recorded = read(plan_command.GOLDEN), read(REPOSITORY / "multirun" / "golden" / "laws.json")
    assert np.array(packaged.pop("draws")) == pytest.approx(np.array(recorded.pop("draws")), rel=1e-5)
    assert packaged == recorded


def test_tokens_are_rounded_down_to_three_digits():
    assert [plan_command.round_down(tokens) for tokens in (999, 1_239, 5_678_901)] == [999, 1_230, 5_670_000]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_planned_run_is_trained_and_its_report_says_whether_the_forecast_held(tmp_path, capfd):
    words = ["logger=csv", f"root={tmp_path / 'multirun'}", "model.width=32"]
    forecast = planned(tmp_path, "--hours", "0.006", *words)
    assert main(["train", *forecast["overrides"]]) == 0
    (folder,) = (tmp_path / "multirun" / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["config_hash"][:8] == forecast["config_hash"] and find_forecast(summary["config_hash"], [tmp_path])
    assert main(["report", str(folder.parent)]) == 0
    answer = json.loads((folder.parent / "findings.json").read_text())
    loss = summary["stages"][-1]["metrics"]["val/builtin/docs/loss"]
    (row,) = answer["tables"]["Forecasts"] if isinstance(answer["tables"], dict) else [answer["tables"][-1]]
    inside = forecast["predicted"]["lo"] <= loss <= forecast["predicted"]["hi"]
    assert row["loss"] == loss and row["outcome"] == ("inside" if inside else "outside")
