"""The declaration of the study of judgments: win rates and calibration, paired over what claims leave open."""

import pytest
from studies.ablation_runs import copied
from studies.panels import claim, declared, draw_all, plant, row

from kleiber.records.catalog import read_runs

NOISE = [0.0, 0.01, -0.01, 0.005]
SETTINGS = [  # judgments, selection, noise, win rate, and the arm of annotators who do something else
    (50, "random", 0.2, 0.55), (200, "random", 0.2, 0.65), (800, "random", 0.2, 0.9), (50, "likelihood", 0.2, 0.65),
    (200, "likelihood", 0.2, 0.75), (200, "random", 0.0, 0.8), (200, "random", 0.4, 0.52),
    (200, "random", 0.2, 0.45, "biased"), (200, "random", 0.2, 0.55, "disagreeing"),
]  # fmt: skip
WINS, CHANGES = "Win rate against the start", "Change of calibration by training"


def write(folder, judgments, select, noise, win, arm="usual", seed=0):
    prefix, more = "eval/calibration/tinystories", judgments / 8000
    before = {f"{prefix}/ece": 0.02, f"{prefix}/accuracy": 0.6, f"{prefix}/nats": 1.5, f"{prefix}/scaled/ece": 0.5}
    after = {
        f"{prefix}/ece": 0.02 + more + NOISE[seed] / 10, f"{prefix}/accuracy": 0.6, f"{prefix}/nats": 1.7 + more,
        f"{prefix}/scaled/ece": 0.5, "eval/win_rate/judged/win_rate": win + NOISE[seed],
        f"{prefix}/scaled/ece_change": -more + NOISE[seed] / 10,
    }  # fmt: skip
    data = {"judgments": judgments, "select": select, "noise": noise}
    name = f"{judgments}-{select}-{noise}-{arm}"
    plant(folder, name, after, seed, arm=arm, stage={"start_metrics": before, "objective": "dpo"}, data=data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    for setting in SETTINGS:
        for seed in range(4):
            write(folder, *setting, seed=seed)
    return read_runs(folder)


@pytest.fixture(scope="module")
def findings(runs):
    return declared("collaboration").analyze(runs)


def test_win_rates_and_changes_are_means_over_seeds(findings):
    assert len(findings.tables[WINS]) == len(SETTINGS)
    assert all(each["n"] == 4 and each["lo"] < each["value"] < each["hi"] <= 1 for each in findings.tables[WINS])
    assert row(findings, WINS, judgments=800)["value"] == pytest.approx(0.9 + sum(NOISE) / 4)
    change = row(findings, CHANGES, judgments=800, measure="loss on other text")
    assert change["value"] == pytest.approx(0.3)
    before = row(findings, "Calibration before training", measure="calibration error (ECE)")
    assert before["value"] == pytest.approx(0.02)


def test_claims_are_decided_by_planted_differences(findings):
    assert {str(result.decision) for result in findings.claims} == {"supported"} and len(findings.claims) == 9
    values = {
        "wins": (claim(findings, "win_rate", {}, select="random"), 0.4),
        "language": (claim(findings, "nats"), -0.2),
        "judgments": (claim(findings, "win_rate", {"judgments": 50}), 0.35),
        "noise": (claim(findings, "win_rate", {"noise": 0.0}), -0.28),
        "active": (claim(findings, "win_rate", {"select": "random"}), 0.1),
        "length": (claim(findings, "win_rate", annotators="length"), -0.2),
        "disagree": (claim(findings, "win_rate", annotators="disagree"), -0.1),
        "calibration": (claim(findings, "ece"), 0.1),
        "temperature": (claim(findings, "scaled"), -0.1),
    }
    found = {name: result.estimate.value for name, (result, _) in values.items()}
    assert found == pytest.approx({name: value for name, (_, value) in values.items()}, abs=0.003)


def test_active_choice_is_compared_at_the_same_number_and_noise(tmp_path):
    for judgments, select, win in ((50, "random", 0.6), (50, "likelihood", 0.6), (800, "random", 0.9)):
        for seed in range(4):
            write(tmp_path, judgments, select, 0.2, win, seed=seed)
    findings = declared("collaboration").analyze(read_runs(tmp_path))
    assert claim(findings, "win_rate", {"select": "random"}).estimate.value == 0


def test_figures_show_the_usual_annotators_by_number_and_all_at_one_number(findings):
    charts = draw_all(findings)
    assert list(charts) == ["win_rate", "annotators", "calibration"]
    lines = [each for data in charts["win_rate"]["datasets"].values() for each in data if "at" in each]
    assert {each["series"] for each in lines} == {"pairs by likelihood", "pairs at random"}
    shown = [each for data in charts["annotators"]["datasets"].values() for each in data if "series" in each]
    assert len(shown) == 6 and "pairs at random, 20% wrong, disagree" in {each["series"] for each in shown}


def test_two_runs_of_a_setting_and_seed_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("collaboration").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
