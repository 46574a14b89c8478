"""The study `explain` finds the planted order of the methods, pairs it by seed, and decides its claims."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.explain import Explain, agreements, explained
from studies.ablation_runs import copied

SHARES = {"occlusion": 0.98, "integrated_gradients": 0.9, "rollout": 0.7, "gradient_x_input": 0.2, "random": 0.1}


def write(folder, arm: str, without: str = "", flipped: bool = False, planted: bool = True) -> None:
    """Runs of five seeds whose deletion gains are in the order of the shares, or in the reverse one."""
    for seed in range(5):
        metrics = {"val/text/loss": 0.1}
        for method, share in SHARES.items():
            if method == without:
                continue
            noise = 0.001 * (seed - 2) * (1 if method == "occlusion" else -1)
            if planted:
                metrics[f"eval/attribution/text/planted_first/{method}"] = share + noise
            if method != "random":
                gain = (1 - share if flipped else share) + noise
                metrics[f"eval/attribution/text/deletion_gain/{method}"] = gain
                metrics[f"eval/attribution/text/insertion_gain/{method}"] = gain
        params = {"total": 100, "active": 100, "non_embedding": 50, "embedding": 50}
        stage = {"name": "main", "lr": 0.01, "tokens": 1e6, "params": params, "flops": {"model": 1e9}}
        config = {"seed": seed, "study": {"arm": arm}}
        fake_run(folder / f"{arm}-{seed}", [{**stage, "metrics": metrics}], config=config, seed=seed)


@pytest.fixture
def runs(tmp_path):
    write(tmp_path, "trigger")
    write(tmp_path, "trigger_lstm", without="rollout")
    return read_runs(tmp_path)


def test_claims_are_decided_by_differences_within_runs(runs):
    findings = Explain().analyze(runs)
    holds = {verdict["code"]: verdict["holds"] for verdict in findings.verdicts}
    assert holds == {
        **dict.fromkeys(["trigger_occlusion_gradient_x_input", "trigger_integrated_gradients_gradient_x_input"], True),
        "trigger_occlusion_rollout": True, "trigger_faithful": True, "deletion": True, "trigger_lstm_faithful": True,
        "trigger_lstm_occlusion_gradient_x_input": True, "trigger_lstm_integrated_gradients_gradient_x_input": True,
    }  # fmt: skip
    gap = next(each for each in findings.verdicts if each["code"] == "trigger_occlusion_gradient_x_input")
    assert gap["value"] == pytest.approx(0.78) and gap["lo"] < 0.78 < gap["hi"]
    assert "trigger: occlusion 98% [" in findings.answer and "trigger, LSTM:" in findings.answer


def test_every_method_is_in_the_tables_and_figures(runs):
    findings = Explain().analyze(runs)
    first = findings.tables["A cause is ranked first (share of texts)"]
    methods = {(row["task"], row["method"]) for row in first}
    assert ("trigger", "attention rollout") in methods and ("trigger, LSTM", "attention rollout") not in methods
    assert all(0 <= row["lo"] <= row["value"] <= row["hi"] <= 1 for row in first)
    assert len(findings.tables) == 3 and set(findings.figures) == {"planted", "tests"}
    for draw in findings.figures.values():
        assert draw()


def test_deletion_that_orders_the_methods_wrongly_is_told(tmp_path, runs):
    assert agreements(explained(runs), "trigger") == [0.5] * 5
    write(tmp_path / "other", "trigger", flipped=True)
    assert agreements(explained(read_runs(tmp_path / "other")), "trigger") == [-0.5] * 5


def test_a_task_without_known_causes_has_gains_alone(tmp_path, runs):
    write(tmp_path / "more", "stories", planted=False)
    findings = Explain().analyze([*runs, *read_runs(tmp_path / "more")])
    assert all(verdict["holds"] for verdict in findings.verdicts) and "stories" not in str(findings.verdicts)
    tasks = {title: {row["task"] for row in table} for title, table in findings.tables.items()}
    assert "stories" in tasks["Deletion, relative to random rankings (nats)"]
    assert "stories" not in tasks["A cause is ranked first (share of texts)"]


def test_runs_without_planted_causes_are_refused(tmp_path):
    fake_run(tmp_path / "a", [{"name": "main", "metrics": {"val/text/loss": 1.0}}], config={"study": {"arm": "x"}})
    with pytest.raises(ValueError, match="data=trigger"):
        Explain().analyze(read_runs(tmp_path))


def test_two_runs_of_an_arm_and_seed_are_refused_since_one_of_them_would_be_read(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        Explain().analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
