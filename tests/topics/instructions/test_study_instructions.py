"""The study `instructions` compares arms with one another, and each with the model before tuning."""

import pytest
from fake_run import fake_run
from studies.colors import colors
from studies.panels import declared, row

from kleiber.records.catalog import read_runs
from kleiber.studies.claims import overall
from kleiber.studies.compare.study import Compare

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
LIFT, OLD = "eval/instructions/builtin/instructions/lift", "val/tinystories/loss"
BEFORE = {
    "val/alpaca/loss": 4.0, "val/dolly/loss": 5.0, OLD: 1.5, LIFT: 0.01,
    "eval/instructions/builtin/instructions/keywords/lift": 0.1,
}  # fmt: skip
AFTER = {"plain": {OLD: 2.0, LIFT: 0.08}, "replay": {OLD: 1.6, LIFT: 0.02}}
CLAIMS = [{"arm": "replay", "against": "plain", "direction": "lower", "margin": 0.05, "measure": OLD}]
START = {"against": {"moment": "start"}}
SCORES, LIFT_LABEL = "Scores before and after tuning", "lift: followed, less by answers to other prompts"
ABOUT = [
    {"arm": "plain", **START, "direction": "lower", "margin": 0.05},
    {"arm": "plain", **START, "direction": "higher", "margin": 0.02, "measure": LIFT},
    {"arm": "replay", **START, "direction": "higher", "margin": 0.02, "measure": LIFT},
]  # fmt: skip


def analyzed(folder, about=ABOUT):
    return declared("instructions", claims=[*about, *CLAIMS]).analyze(read_runs(folder))


def write_runs(folder, before_of=lambda arm: BEFORE, tasks=("alpaca", "dolly")):
    """Runs of both arms at each rate and seed, which start from a model with the scores `before_of(arm)`."""
    for arm, after in AFTER.items():
        for rate in RATES:
            for seed in range(3):
                lost, noise = (0.0 if rate == 0.003 else 0.2), 0.001 * (seed - 1)
                metrics = {"val/alpaca/loss": 3.0 + lost + noise, "val/dolly/loss": 4.0}
                metrics |= {name: value + noise for name, value in after.items()}
                config = {
                    "seed": seed, "model": {"depth": 2, "width": 32, "context": 128}, "optimizer": {"lr": rate},
                    "study": {"arm": arm}, "data": {},
                }  # fmt: skip
                stage = {"name": "main", "lr": rate, "tokens": 1e5, "metrics": metrics,
                         "start_metrics": before_of(arm), "flops": {"model": 1e9},
                         "params": {"total": 1000 + 200 * (arm == "replay"), "active": 1000},
                         "tasks": [*tasks]}  # fmt: skip
                fake_run(folder / f"{arm}-{rate:g}-{seed}", [stage], config=config, seed=seed)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def findings(folder):
    return analyzed(folder)


@pytest.mark.slow
def test_claims_about_the_start_are_decided_by_what_changed(findings):
    rows = [result.to_json() for result in findings.claims]
    assert [row["decision"] for row in rows] == ["supported", "supported", "contradicted", "supported"]
    assert rows[0]["value"] == pytest.approx(-1.0) and rows[1]["value"] == pytest.approx(0.07)
    assert [row["against"] for row in rows] == [{"moment": "start"}] * 3 + [{"arm": "plain"}]
    assert overall(findings.claims) == "contradicted"


def test_all_claims_share_the_error_rate(findings):
    pair = 0.95**0.5  # two claims about one measure share half of the error rate of 0.1
    assert [result.level for result in findings.claims] == pytest.approx([1 - 0.1 / 4, pair, pair, 1 - 0.1 / 4])
    assert "over 4 claims" in findings.methods


def test_an_undecided_claim_about_the_start_tells_how_many_seeds_would_decide_it(folder):
    about = {"arm": "plain", **START, "direction": "higher", "margin": 0.0695, "measure": LIFT}
    result = analyzed(folder, [about]).claims[0]
    assert result.decision == "undecided" and result.more_seeds > 0


def test_the_measure_loss_is_that_of_the_task_before_tuning(tmp_path):
    write_runs(tmp_path, tasks=("alpaca",))
    (result,) = Compare(claims=[{"arm": "plain", **START}]).analyze(read_runs(tmp_path)).claims
    assert result.decision == "supported" and result.estimate.value == pytest.approx(-1.0)


@pytest.mark.parametrize(("margin", "decision"), [(0.1, "supported"), (0.05, "contradicted")])
def test_a_claim_of_a_small_change_is_decided_by_its_margin(folder, margin, decision):
    about = {"arm": "plain", **START, "direction": "within", "margin": margin, "measure": LIFT}
    result = analyzed(folder, [about]).claims[0]
    assert result.estimate.value == pytest.approx(0.07) and result.decision == decision


def test_claims_about_the_start_wait_for_all_runs_and_name_arms_that_there_are(folder):
    write_summary = folder / "replay-0.01-2" / "summary.json"
    finished = write_summary.read_text()
    write_summary.write_text(finished.replace('"finished"', '"killed"'))
    try:
        results = analyzed(folder).claims
    finally:
        write_summary.write_text(finished)
    assert {result.decision for result in results} == {"not tested"} and "1 of 30 runs" in results[0].why
    with pytest.raises(ValueError, match=r"study\.claims: plian"):
        analyzed(folder, [{"arm": "plian", **START, "direction": "lower", "margin": 0.05}])


@pytest.mark.slow
def test_scores_before_and_after_are_in_the_tables_and_figures(findings):
    losses = "Losses before and after tuning"
    before = row(findings, losses, data="TinyStories", arm="replay", moment="before tuning")
    after = row(findings, losses, data="TinyStories", arm="replay", moment="")
    assert before["value"] == 1.5 and after["value"] == pytest.approx(1.6)
    assert {each["measure"] for each in findings.tables[SCORES]} == {LIFT_LABEL}, "of all instructions together"
    assert "sizes" not in findings.figures, "arms of one base differ by adapters alone"
    drawn = {name: draw().to_dict() for name, draw in findings.figures.items()}
    assert colors(drawn["scores"]) == colors(drawn["losses"]) and "before tuning" in str(drawn["losses"])


@pytest.mark.slow
def test_arms_that_start_from_different_weights_are_compared_with_their_own_start(tmp_path):
    findings = analyzed(write_runs(tmp_path, lambda arm: {**BEFORE, LIFT: {"plain": 0.05, "replay": -0.04}[arm]}))
    changes = [result.estimate.value for result in findings.claims]
    assert changes[1:3] == pytest.approx([0.08 - 0.05, 0.02 + 0.04])
    for arm, lift in (("plain tuning", 0.05), ("replay", -0.04)):
        assert row(findings, SCORES, arm=arm, moment="before tuning")["value"] == pytest.approx(lift)


@pytest.mark.parametrize("other", [{"better": "yes"}, {"equal": "money"}, {"against": 3}])
def test_a_claim_with_another_key_is_refused(other):
    with pytest.raises(ValueError, match=r"study\.claims\[0\]"):
        Compare(claims=[{"arm": "plain", **START, **other}])
