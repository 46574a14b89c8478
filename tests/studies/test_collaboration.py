"""The study of judgments on planted runs: win rates and calibration are paired by seed, and claims are decided."""

from __future__ import annotations

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.collaboration import Collaboration, calibration_chart, label, scored, win_chart

NOISE = [0.0, 0.01, -0.01, 0.005]
SETTINGS = [
    (50, "random", 0.2, 0.55), (200, "random", 0.2, 0.65), (800, "random", 0.2, 0.9), (50, "likelihood", 0.2, 0.65),
    (200, "likelihood", 0.2, 0.75), (200, "random", 0.0, 0.8), (200, "random", 0.4, 0.52),
]  # fmt: skip


def write(folder, judgments, select, noise, win, seed):
    prefix, more = "eval/calibration/tinystories", judgments / 8000
    before = {f"{prefix}/ece": 0.02, f"{prefix}/accuracy": 0.6, f"{prefix}/temperature": 1.0}
    after = {f"{prefix}/ece": 0.02 + more + NOISE[seed] / 10, f"{prefix}/accuracy": 0.6, f"{prefix}/temperature": 1.2}
    stage = {
        "metrics": {**after, "eval/win_rate/judged/win_rate": win + NOISE[seed],
                    f"{prefix}/scaled/ece_change": -more + NOISE[seed] / 10},
        "start_metrics": before, "objective": "dpo",
    }  # fmt: skip
    config = {"seed": seed, "data": {"judgments": judgments, "select": select, "noise": noise}, "study": {"arm": "x"}}
    fake_run(folder / f"{judgments}-{select}-{noise}-{seed}", [stage], config=config, seed=seed)


@pytest.fixture
def folder(tmp_path):
    for setting in SETTINGS:
        for seed in range(4):
            write(tmp_path, *setting, seed)
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
    assert "After 800 judgments the model wins against its start on 90%" in findings.headline


def test_claims_are_decided_by_planted_differences(folder):
    verdicts = {verdict["code"]: verdict for verdict in Collaboration().analyze(read_runs(folder)).verdicts}
    assert set(verdicts) == {"wins", "judgments", "noise", "active_likelihood", "calibration", "temperature"}
    assert all("supported" in str(verdict["text"]) or verdict["level"] == "note" for verdict in verdicts.values())


def test_active_choice_is_compared_at_the_same_number_and_noise(tmp_path):
    for judgments, select, win in ((50, "random", 0.6), (50, "likelihood", 0.6), (800, "random", 0.9)):
        for seed in range(4):
            write(tmp_path, judgments, select, 0.2, win, seed)
    verdict = next(v for v in Collaboration().analyze(read_runs(tmp_path)).verdicts if v["code"] == "active_likelihood")
    assert "0.0000" in verdict["text"]


def test_figures_and_labels(folder):
    findings = Collaboration().analyze(read_runs(folder))
    assert list(findings.figures) == ["win_rate", "calibration"]
    assert win_chart(findings.tables["Win rate against the start"]).to_dict()["layer"]
    assert calibration_chart(findings.tables["Calibration before and after"]).to_dict()
    assert label({"select": "likelihood", "noise": 0.2}) == "pairs by likelihood, 20% wrong"


def test_runs_without_judgments_are_refused(tmp_path):
    fake_run(tmp_path / "a", [{"metrics": {"val/docs/loss": 1.0}}], config={"seed": 0, "data": {}})
    with pytest.raises(ValueError, match="no run here was fine-tuned on judgments"):
        scored(read_runs(tmp_path), "tinystories")
