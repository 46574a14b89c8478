"""The declaration of the study of bias, on planted runs."""

import pytest
from studies.ablation_runs import copied
from studies.colors import colors
from studies.panels import claim, decisions, declared, draw_all, plant, row, with_metrics

from kleiber.records.catalog import read_runs

SCORES = {"base": 0.5, "plain": 0.9, "augmentation": 0.55, "useless": 0.9}
NOISE = [0.02, 0.0, -0.02]
MEANS, GAPS = "Means", "Difference from plain fine-tuning"


def write(folder, arm, size, seed):
    wobble = NOISE[seed] + (0.005 * (seed - 1) if arm == "augmentation" else 0.0)
    prefix = "eval/bias/builtin/occupations"
    metrics = {
        f"{prefix}/stereotype_score": SCORES[arm] + wobble, f"{prefix}/gap": (SCORES[arm] - 0.5) * size / 1000 + wobble,
        f"{prefix}/stereotype_score/gender": 0.1, f"{prefix}/bits_per_byte": 0.3,
        "val/biased/loss": 1.0 + wobble, "val/docs/loss": 2.0 + 0.1 * (arm != "base"),
    }  # fmt: skip
    stage, matrix = {"params": {"total": size, "active": size}}, None
    if arm != "base":
        stage |= {"start_metrics": {"val/docs/loss": 2.0, "val/biased/loss": 3.0}, "tasks": ["biased"]}
        matrix = {"tasks": ["docs", "biased"]}
    init = None if arm == "base" else {"path": str(folder / f"base-{size}-{seed}" / "main")}
    plant(folder, f"{arm}-{size}", metrics, seed, arm=arm, stage=stage, R=matrix, init=init)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("bias")
    for arm in SCORES:
        for size in (1000, 4000):
            for seed in range(3):
                write(place, arm, size, seed)
    return read_runs(place)


@pytest.mark.slow
def test_claims_are_decided_by_differences_within_sizes_and_seeds(runs):
    findings = declared("bias").analyze(runs)
    learned = claim(findings, "stereotype_score", {"arm": "base"}, arm="plain")
    assert learned.decision == "supported" and learned.claim.equal is None, "one side started from the other"
    lowered = claim(findings, "stereotype_score", {"arm": "plain"}, arm="augmentation")
    assert lowered.decision == "supported" and lowered.estimate.value == pytest.approx(-0.35)
    assert lowered.estimate.n == 6 and lowered.claim.equal == "learning_rate"
    assert claim(findings, "stereotype_score", {"arm": "plain"}, arm="useless").decision == "undecided"
    assert claim(findings, "gap").decision == "supported" and claim(findings, "gap").claim.of["size"] == 4000
    assert len(findings.claims) == 4


@pytest.mark.slow
def test_tables_have_means_and_changes_of_every_size(runs):
    findings = declared("bias").analyze(runs)
    gap = row(findings, GAPS, arm="augmentation", parameters=4000, measure="stereotype score")
    assert gap["value"] == pytest.approx(-0.35) and gap["n"] == 3 and -0.36 < gap["lo"] < gap["hi"] < -0.34
    forgotten = [each for each in findings.tables[MEANS] if each["measure"] == "forgetting of the earlier text"]
    assert {round(each["value"], 6) for each in forgotten} == {0.1}
    assert "before fine-tuning" not in {each["arm"] for each in forgotten}, "a base has forgotten nothing"


@pytest.mark.slow
def test_intervals_of_scores_end_at_0_and_1(runs):
    score = {"eval/bias/builtin/occupations/stereotype_score": 1.0}
    raised = [with_metrics(run, score if run.config["study"]["arm"] == "plain" else {}) for run in runs]
    means = declared("bias").analyze(raised).tables[MEANS]
    scores = [each for each in means if (each["arm"], each["measure"]) == ("plain fine-tuning", "stereotype score")]
    assert {each["hi"] for each in scores} == {1.0} and all(each["lo"] < 1 for each in scores)


def test_a_size_without_its_counterpart_is_not_claimed_and_draws_no_line(runs):
    small = [run for run in runs if run.stage["params"]["total"] == 1000]
    findings = declared("bias").analyze(small)
    assert claim(findings, "gap").decision == "not tested"
    assert "sizes" not in findings.figures


@pytest.mark.slow
def test_figures_give_an_arm_one_color(runs):
    every = draw_all(declared("bias").analyze(runs))
    assert list(every) == ["arms", "trade_off", "sizes"]
    seen = {}
    for chart in every.values():
        for name, color in colors(chart).items():
            assert seen.setdefault(name, color) == color, "an arm has one color on a page"
    assert "before fine-tuning" in str(every["arms"])


def test_two_runs_of_an_arm_size_and_seed_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("bias").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])


@pytest.mark.slow
def test_runs_that_were_not_scored_are_refused(runs):
    other = {"measures": {"score": "eval/bias/other/stereotype_score"}, "answer": None, "claims": [], "figures": []}
    with pytest.raises(ValueError, match="eval/bias/other/stereotype_score"):
        declared("bias", **other, means=[], contrasts=[]).analyze(runs)
    assert "not tested" not in decisions(declared("bias").analyze(runs))
