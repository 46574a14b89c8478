"""The declaration of the study of memorization: exposure by repetitions, width and remedy, and what remedies cost."""

import pytest
from studies.ablation_runs import copied
from studies.panels import claim, declared, draw_all, plant, row, rows, with_metrics

from kleiber.records.catalog import read_runs

EXPOSURE = {  # by arm: at 0, 1, 30 and 100 repetitions
    "plain": (1.4, 2.0, 6.0, 13.0), "exact": (1.4, 1.9, 1.8, 2.1), "dp_1": (1.4, 1.4, 1.5, 1.4),
}  # fmt: skip
LOSS = {"plain": 2.0, "exact": 1.98, "dp_1": 3.0}
MEASURED, COSTS = "Exposure and extraction by repetitions", "Loss and membership"
MOST = "exposure of secrets read 100 times"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memorization")
    for arm, exposures in EXPOSURE.items():
        for width in (32, 64):
            for seed in range(3):
                wobble = 0.05 * (seed - 1)
                metrics = {"val/docs/loss": LOSS[arm] + wobble / 10 - (width == 64) / 10}
                for count, bits in zip((0, 1, 30, 100), exposures, strict=True):
                    at = f"eval/memorization/canaries/exposure/{count}"
                    wider = float(width == 64 and arm == "plain" and count == 30)
                    metrics[at] = bits + wider + wobble * (1 + (count == 100))
                    metrics[at.replace("exposure", "extracted")] = float(bits > 12)
                metrics["eval/memorization/builtin/docs/membership_auc/loss"] = 0.6
                metrics |= {"privacy/epsilon": 0.99} if arm == "dp_1" else {}
                plant(folder, f"{arm}{width}", metrics, seed, arm=arm, model={"width": width})
    return read_runs(folder)


@pytest.mark.slow
def test_exposure_grows_with_repetitions_and_width_and_falls_with_remedies(runs):
    findings = declared("memorization").analyze(runs)
    assert claim(findings, "exposure", {"repetitions": 1}).decision == "supported"
    width = claim(findings, "exposure", {"width": 32})
    assert width.decision == "supported" and width.estimate.value == pytest.approx(1)
    for arm, value in (("exact", -10.9), ("dp_1", -11.6)):
        lower = claim(findings, "most", {"arm": "plain"}, arm=arm)
        assert lower.decision == "supported" and lower.estimate.value == pytest.approx(value)
        assert lower.estimate.n == 6 and lower.claim.equal == "learning_rate"
    assert claim(findings, "loss", arm="exact").decision == "supported", "it is not higher"
    assert claim(findings, "loss", arm="dp_1").estimate.value == pytest.approx(1)


@pytest.mark.slow
def test_tables_have_every_arm_width_and_number_of_repetitions(runs):
    findings = declared("memorization").analyze(runs)
    assert len(findings.tables[MEASURED]) == 3 * 2 * 4 * 2
    spent = row(findings, COSTS, arm="DP-SGD, epsilon 1", width=64, measure="epsilon spent")
    assert spent["value"] == pytest.approx(0.99)
    assert rows(findings, COSTS, arm="plain training", measure="epsilon spent") == []
    most = row(findings, "Most repetitions minus one", width=64, measure="exposure")
    assert most["value"] == pytest.approx(11) and most["lo"] > 10
    chance = row(findings, "Most repetitions minus never planted", arm="DP-SGD, epsilon 1", width=32)
    assert chance["value"] == pytest.approx(0)
    once = row(findings, "DP-SGD minus reading the same canaries once", arm="DP-SGD, epsilon 1", width=32)
    assert once["value"] == pytest.approx(1.4 - 2.1)


@pytest.mark.slow
def test_intervals_of_shares_end_at_0_and_1(runs):
    shares = rows(declared("memorization").analyze(runs), MEASURED, measure="share of canaries extracted")
    assert all(0 <= each["lo"] <= each["hi"] <= 1 for each in shares)


@pytest.mark.slow
def test_figures_leave_out_canaries_that_were_never_planted(runs):
    charts = draw_all(declared("memorization").analyze(runs))
    assert list(charts) == ["exposure", "extracted", "epsilon"]
    drawn = {each["repetitions"] for data in charts["exposure"]["datasets"].values() for each in data if "at" in each}
    assert drawn == {1, 30, 100}


def test_runs_that_are_compared_with_nothing_have_means_and_untested_claims(runs):
    metrics = {name: None for name in runs[0].metrics if "/canaries/" in name and not name.endswith("/100")}
    alone = [with_metrics(run, metrics) for run in runs if run.config["study"]["arm"] == "plain"]
    findings = declared("memorization").analyze(alone)
    assert {str(result.decision) for result in findings.claims} == {"not tested"}
    assert row(findings, COSTS, width=64, measure=MOST)["value"] == pytest.approx(13)


def test_two_runs_of_an_arm_width_and_seed_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("memorization").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
