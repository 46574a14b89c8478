"""The study `explain`: the planted order of methods is found within runs, and deletion is compared with it."""

import pytest
from studies.ablation_runs import copied
from studies.panels import claim, decisions, declared, draw_all, plant, row, rows

from kleiber.records.catalog import read_runs

SHARES = {"occlusion": 0.98, "integrated_gradients": 0.9, "rollout": 0.7, "gradient_x_input": 0.2, "random": 0.1}
PLANTED, TESTS = "Planted causes", "Deletion and insertion, relative to random rankings"


def write(folder, arm: str, without: str = "", flipped: bool = False, planted: bool = True) -> None:
    """Runs of five seeds whose deletion gains are in the order of the shares, or in the reverse one."""
    for seed in range(5):
        metrics = {}
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
        plant(folder, arm, metrics, seed, arm=arm)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    write(folder, "trigger")
    write(folder, "trigger_lstm", without="rollout")
    return read_runs(folder)


@pytest.fixture(scope="module")
def findings(runs):
    return declared("explain").analyze(runs)


def test_claims_are_decided_by_differences_within_runs(findings):
    assert decisions(findings) == ["supported"] * 8, "an LSTM has no attention to roll out"
    assert all(result.claim.equal is None for result in findings.claims), "methods are measured on the same runs"
    gap = claim(findings, "planted_first", {"method": "gradient_x_input"}, arm="trigger", method="occlusion")
    assert gap.estimate.value == pytest.approx(0.78) and gap.estimate.lo < 0.78 < gap.estimate.hi
    faithful = next(result for result in findings.claims if result.claim.less == 0.95)
    assert faithful.claim.of == {"method": "occlusion", "arm": "trigger"}
    assert faithful.estimate.value == pytest.approx(0.03)


@pytest.mark.parametrize(("flipped", "agreement", "decision"), [(False, 1.0, "supported"), (True, 0.0, "contradicted")])
def test_deletion_orders_methods_as_the_truth_does_or_the_other_way(tmp_path, flipped, agreement, decision):
    write(tmp_path, "trigger", flipped=flipped)
    findings = declared("explain").analyze(read_runs(tmp_path))
    assert row(findings, "Agreement of deletion with the truth")["value"] == agreement
    assert claim(findings, "agreement").decision == decision and claim(findings, "agreement").estimate.n == 5


def test_ties_are_left_out_of_the_agreement(tmp_path):
    write(tmp_path, "trigger")
    tied = []
    for run in read_runs(tmp_path):
        metrics = run.metrics | {"eval/attribution/text/planted_first/occlusion": SHARES["rollout"]}
        metrics["eval/attribution/text/planted_first/rollout"] = SHARES["rollout"]
        plant(tmp_path / "tied", "trigger", metrics, run.config["seed"], arm="trigger")
    tied = read_runs(tmp_path / "tied")
    shares = row(declared("explain").analyze(tied), "Agreement of deletion with the truth")
    # Integrated gradients are above the tied pair in truth and between them in the test: 4 of 5 pairs agree.
    assert shares["value"] == pytest.approx(0.8)


def test_every_method_is_in_the_tables_and_figures(findings):
    first = rows(findings, PLANTED, measure="a cause is ranked first")
    methods = {(each["task"], each["method"]) for each in first}
    assert ("trigger", "attention rollout") in methods and ("trigger (LSTM)", "attention rollout") not in methods
    assert all(0 <= each["lo"] <= each["value"] <= each["hi"] <= 1 for each in first)
    assert list(draw_all(findings)) == ["planted", "tests"]


def test_a_task_without_known_causes_has_gains_alone(tmp_path, runs):
    write(tmp_path / "more", "stories", planted=False)
    findings = declared("explain").analyze([*runs, *read_runs(tmp_path / "more")])
    assert decisions(findings) == ["supported"] * 8
    assert "stories" in {each["task"] for each in findings.tables[TESTS]}
    assert "stories" not in {each["task"] for each in findings.tables[PLANTED]}


def test_two_runs_of_an_arm_and_seed_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("explain").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
