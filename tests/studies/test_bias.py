"""The study of bias on planted runs: differences are paired, claims are decided, and figures name arms and sizes."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.bias import METRICS, Bias, arms_chart, claims, scored, shown_means, sizes_chart, trade_off
from studies.ablation_runs import copied

from .colors import colors

PREFIX = "eval/bias/builtin/occupations"
SCORES = {"base": 0.5, "plain": 0.9, "augmentation": 0.55, "useless": 0.9}
NOISE = [0.02, 0.0, -0.02]


def write(folder, arm, size, seed):
    wobble = NOISE[seed] + (0.005 * (seed - 1) if arm == "augmentation" else 0.0)
    metrics = {
        f"{PREFIX}/stereotype_score": SCORES[arm] + wobble, f"{PREFIX}/gap": (SCORES[arm] - 0.5) * size / 1000 + wobble,
        f"{PREFIX}/bits_per_byte": 0.3, "val/biased/loss": 1.0 + wobble, "val/docs/loss": 2.0 + 0.1 * (arm != "base"),
    }  # fmt: skip
    stage = {"metrics": metrics, "params": {"total": size, "active": size}}
    matrix = {}
    if arm != "base":
        stage |= {"start_metrics": {"val/docs/loss": 2.0, "val/biased/loss": 3.0}, "tasks": ["biased"]}
        matrix = {"R": {"tasks": ["docs", "biased"]}}
    config = {"seed": seed, "study": {"arm": arm}}
    fake_run(folder / f"{arm}-{size}-{seed}", [stage], config=config, seed=seed, **matrix)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bias")
    for arm in SCORES:
        for size in (1000, 4000):
            for seed in range(3):
                write(place, arm, size, seed)
    return place


def test_differences_are_within_seeds_and_claims_are_decided(folder):
    findings = Bias().analyze(read_runs(folder))
    gaps = {
        (row["arm"], row["parameters"], row["metric"]): row
        for row in findings.tables["Difference from plain fine-tuning"]
    }
    row = gaps["augmentation", 4000, METRICS["stereotype_score"][0]]
    assert row["value"] == pytest.approx(-0.35) and row["n"] == 3 and -0.36 < row["lo"] < row["hi"] < -0.34
    holds = {verdict["code"]: verdict["holds"] for verdict in findings.verdicts}
    assert holds == {"learned": True, "augmentation_lowers": True, "useless_lowers": None, "size": True}
    assert "from 0.500" in findings.answer and "4,000 parameters" in findings.answer
    forgetting = [row for row in findings.tables["Means"] if row["metric"] == METRICS["F"][0]]
    assert {round(row["mean"], 6) for row in forgetting} == {0.1} and "before" not in str(forgetting)
    assert list(findings.figures) == ["arms", "trade_off", "sizes"]


def test_intervals_of_scores_end_at_0_and_1(folder):
    rows = scored(read_runs(folder), "builtin/occupations")
    rows["stereotype_score"] = rows["stereotype_score"].mask(rows["arm"] == "plain", 1.0)
    means = shown_means(rows, list(SCORES), 0.9)
    plain = means[(means["column"] == "stereotype_score") & (means["arm"] == "plain fine-tuning")]
    assert (plain["hi"] == 1).all() and (plain["lo"] < 1).all()


def test_what_was_not_measured_is_refused_or_left_out(folder, tmp_path):
    runs = read_runs(folder)
    with pytest.raises(ValueError, match=r"no run has a metric eval/bias/other/stereotype_score"):
        scored(runs, "other")
    with pytest.raises(ValueError, match=r"no run of the arm `plain`"):
        scored([run for run in runs if run.config["study"]["arm"] != "plain"], "builtin/occupations")
    one = [run for run in runs if run.stage["params"]["total"] == 1000]
    rows = scored(one, "builtin/occupations")
    assert "size" not in {claim.code for claim in claims(rows, ["augmentation"]) if claim.values}
    assert "sizes" not in Bias().analyze(one).figures


def test_figures_name_arms_and_sizes(folder):
    rows = scored(read_runs(folder), "builtin/occupations")
    order = ["base", "plain", "augmentation", "useless"]
    means = shown_means(rows, order, 0.9)
    charts = [arms_chart(means, order, 0.9), trade_off(means, order), sizes_chart(means, order, 0.9)]
    charts = [chart.to_dict() for chart in charts]
    assert [charts[i]["title"]["subtitle"] for i in (0, 2)] == ["90% intervals over seeds"] * 2
    texts, (every, *others) = [str(chart) for chart in charts], [colors(chart) for chart in charts]
    assert all(part and part.items() <= every.items() for part in others), "an arm has one color on a page"
    assert all("plain fine-tuning" in text for text in texts)
    assert "before fine-tuning, 1k" in texts[0] and "before fine-tuning" not in texts[1]
    assert "forgetting of the earlier text (nats per token)" in texts[0]


def test_two_runs_of_an_arm_size_and_seed_are_refused_since_one_of_them_would_be_read(folder):
    runs = read_runs(folder)
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        Bias().analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])


def test_a_larger_size_without_plain_fine_tuning_is_left_out_of_the_headline(folder):
    unfinished = [run for run in read_runs(folder) if run.config["study"]["arm"] == "base" or "-1000-" in run.name]
    assert "1,000 parameters" in Bias().analyze(unfinished).answer


def test_the_headline_is_of_the_largest_size_at_which_plain_fine_tuning_was_scored(folder):
    runs = read_runs(folder)
    plain = [run for run in runs if run.config["study"]["arm"] == "plain"]
    for run in plain:
        if "-4000-" in run.name:
            run.metrics.pop(f"{PREFIX}/stereotype_score")
    assert "to 0.900 [" in Bias().analyze(runs).answer and "1,000 parameters" in Bias().analyze(runs).answer
    for run in plain:
        run.metrics.pop(f"{PREFIX}/stereotype_score", None)
    assert "not determined" in Bias().analyze(runs).answer
