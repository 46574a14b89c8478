"""The study of judgments on planted runs: win rates and calibration are paired by seed, and claims are decided."""

from __future__ import annotations

import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.collaboration import (
    KEYS,
    WIN,
    Collaboration,
    annotator_chart,
    calibration_chart,
    label,
    scored,
    win_chart,
    win_rates,
)
from studies.ablation_runs import copied

NOISE = [0.0, 0.01, -0.01, 0.005]
SETTINGS = [
    (50, "random", 0.2, 0.55), (200, "random", 0.2, 0.65), (800, "random", 0.2, 0.9), (50, "likelihood", 0.2, 0.65),
    (200, "likelihood", 0.2, 0.75), (200, "random", 0.0, 0.8), (200, "random", 0.4, 0.52),
    (200, "random", 0.2, 0.45, "longer"), (200, "random", 0.2, 0.55, "disagreement"),
]  # fmt: skip


def write(folder, judgments, select, noise, win, fault=None, seed=0):
    prefix, more = "eval/calibration/tinystories", judgments / 8000
    before = {f"{prefix}/ece": 0.02, f"{prefix}/accuracy": 0.6, f"{prefix}/nats": 1.5}
    after = {f"{prefix}/ece": 0.02 + more + NOISE[seed] / 10, f"{prefix}/accuracy": 0.6, f"{prefix}/nats": 1.7 + more}
    stage = {
        "metrics": {**after, "eval/win_rate/judged/win_rate": win + NOISE[seed],
                    f"{prefix}/scaled/ece_change": -more + NOISE[seed] / 10},
        "start_metrics": before, "objective": "dpo",
    }  # fmt: skip
    data = {"judgments": judgments, "select": select, "noise": noise, **({fault: 1.0} if fault else {})}
    config = {"seed": seed, "data": data, "study": {"arm": "x"}}
    fake_run(folder / f"{judgments}-{select}-{noise}-{fault}-{seed}", [stage], config=config, seed=seed)


@pytest.fixture
def folder(tmp_path):
    for setting in SETTINGS:
        for seed in range(4):
            write(tmp_path, *setting, seed=seed)
    return tmp_path


def test_win_rates_and_changes_are_means_over_seeds(folder):
    findings = Collaboration().analyze(read_runs(folder))
    wins = findings.tables["Win rate against the start"]
    assert len(wins) == len(SETTINGS) and all(row["n"] == 4 and row["lo"] < row["value"] < row["hi"] for row in wins)
    best = next(row for row in wins if row["judgments"] == 800)
    assert best["value"] == pytest.approx(0.9 + sum(NOISE) / 4)
    change = next(
        row for row in findings.tables["Calibration before and after"]
        if row["judgments"] == 800 and row["measure"].startswith("calibration error")
    )  # fmt: skip
    assert change["before"] == pytest.approx(0.02) and change["value"] == pytest.approx(0.1, abs=0.01)
    assert "After 800 judgments the model wins against its start on 90%" in findings.answer
    assert "The loss on other text changes by +0.300" in findings.answer


def test_claims_are_decided_by_planted_differences(folder):
    verdicts = {verdict["code"]: verdict for verdict in Collaboration().analyze(read_runs(folder)).verdicts}
    values = {
        "wins": 0.4, "language": -0.2, "judgments": 0.35, "noise": -0.28, "active_likelihood": 0.1,
        "annotators_favor_length": -0.2, "annotators_disagree": -0.1, "calibration": 0.1, "temperature": -0.1,
    }  # fmt: skip
    assert {code: verdict["value"] for code, verdict in verdicts.items()} == pytest.approx(values, abs=0.003)
    assert all(verdict["holds"] for verdict in verdicts.values())


def test_active_choice_is_compared_at_the_same_number_and_noise(tmp_path):
    for judgments, select, win in ((50, "random", 0.6), (50, "likelihood", 0.6), (800, "random", 0.9)):
        for seed in range(4):
            write(tmp_path, judgments, select, 0.2, win, seed=seed)
    verdict = next(v for v in Collaboration().analyze(read_runs(tmp_path)).verdicts if v["code"] == "active_likelihood")
    assert "0.0000" in verdict["text"]


def test_the_interval_of_a_win_rate_ends_at_one():
    place = dict(zip(KEYS, (50, "random", 0.2, ""), strict=True))
    rows = [{**place, "seed": seed, WIN: win} for seed, win in enumerate((1.0, 0.9, 0.5))]
    (row,) = win_rates(pd.DataFrame(rows), 0.9)
    assert row["value"] == pytest.approx(0.8) and row["lo"] < 0.8 and row["hi"] == 1.0


def test_figures_and_labels(folder):
    findings = Collaboration().analyze(read_runs(folder))
    assert list(findings.figures) == ["win_rate", "annotators", "calibration"]
    wins = findings.tables["Win rate against the start"]
    drawn = win_chart(wins, 0.9).to_dict()["datasets"].values()
    assert {row["kind"] for rows in drawn for row in rows if "kind" in row} == {
        "pairs at random, 20% wrong", "pairs by likelihood, 20% wrong",
    }, "lines of a single number are in the other figure"  # fmt: skip
    (shown,) = annotator_chart(wins, 0.9).to_dict()["datasets"].values()
    assert len(shown) == 6 and {row["judgments"] for row in shown} == {200}
    assert calibration_chart(findings.tables["Calibration before and after"], 0.9).to_dict()
    assert label({"select": "likelihood", "noise": 0.2}) == "pairs by likelihood, 20% wrong"
    row = {"select": "random", "noise": 0.4, "annotators": "disagree"}
    assert label(row) == "pairs at random, 40% wrong, disagree"


def test_runs_without_judgments_are_refused(tmp_path):
    fake_run(tmp_path / "a", [{"metrics": {"val/docs/loss": 1.0}}], config={"seed": 0, "data": {}})
    with pytest.raises(ValueError, match="no run here was fine-tuned on judgments"):
        scored(read_runs(tmp_path), "tinystories")


def test_two_runs_of_a_setting_and_seed_are_refused_since_one_of_them_would_be_read(folder):
    runs = read_runs(folder)
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        Collaboration().analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
