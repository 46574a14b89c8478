"""The declaration of the study of collapse: generations are compared with the first, which counts once."""

import pytest
from studies.ablation_runs import copied
from studies.panels import claim, declared, draw_all, plant, row, rows

from kleiber.records.catalog import read_runs

NOISE = [0.0, 0.3, -0.2]
OVER, TUNED, MEANS = "Change from generation 0 to the last", "Change by a stage of fine-tuning", "Means by generation"
LOSS, DISTINCT = "loss on real text", "different 2-grams (distinct-2)"


def write(folder, arm, generation, size, seed, loss, distinct):
    prefix = "eval/degeneration/builtin/docs"
    metrics = {
        "eval/perplexity/builtin/docs/loss": loss + NOISE[seed], "val/builtin/docs/loss": 9.0,
        f"{prefix}/sampled/distinct_2": distinct + NOISE[seed] / 10, f"{prefix}/human/distinct_2": 0.8,
    }  # fmt: skip
    stage = {"params": {"total": size, "active": size}}
    study = {"arm": arm, "generation": generation}
    plant(folder, f"{arm}-{generation}-{size}", metrics, seed, stage=stage, study=study)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Replacing raises the loss by .2 a generation (.3 for the large model), accumulating by .05."""
    folder = tmp_path_factory.mktemp("collapse")
    for size, steep in ((1000, 0.2), (4000, 0.3)):
        for seed in range(3):
            wobble = 0.01 * (seed - 1)
            write(folder, "real", 0, size, seed, 2.0, 0.7)
            for g in (1, 2):
                write(folder, "replace", g, size, seed, 2.0 + steep * g + wobble, 0.7 - 0.1 * g)
                write(folder, "accumulate", g, size, seed, 2.0 + 0.05 * g + wobble, 0.7 + 0.01 * g)
            write(folder, "narrow", 0, size, seed, 2.4 + wobble, 0.6)
    return read_runs(folder)


@pytest.mark.slow
def test_changes_are_within_sizes_and_seeds_and_claims_are_decided(runs):
    findings = declared("collapse").analyze(runs)
    change = row(findings, OVER, arm="generated text alone", parameters=4000, measure=LOSS)
    assert change["value"] == pytest.approx(0.6) and change["n"] == 3 and 0.58 < change["lo"] < change["hi"] < 0.62
    first = {"arm": "real", "generation": 0}
    assert claim(findings, "distinct_2", first, arm="replace").decision == "supported"
    assert claim(findings, "distinct_2", first, arm="accumulate").decision == "contradicted"
    rises = [result for result in findings.claims if result.claim.measure == "loss" and result.claim.against == first]
    by_arm = {(result.claim.of["arm"], result.claim.than is not None): result for result in rises}
    assert by_arm["replace", False].decision == by_arm["accumulate", False].decision == "supported"
    assert by_arm["replace", False].estimate.n == 6 and by_arm["replace", False].claim.of["generation"] == 2
    assert by_arm["replace", True].decision == "supported"
    assert by_arm["replace", True].estimate.value == pytest.approx(0.2)
    assert by_arm["accumulate", True].decision == "undecided"
    assert claim(findings, "loss", {"arm": "accumulate"}).estimate.value == pytest.approx(0.4)
    assert claim(findings, "entropy", arm="replace").decision == "not tested", "it was not measured"


@pytest.mark.slow
def test_the_first_generation_is_pooled_once(runs):
    findings = declared("collapse").analyze(runs)
    assert len(rows(findings, MEANS, measure=LOSS)) == 2 * (1 + 2 + 2)
    assert rows(findings, MEANS, arm="narrow fine-tuning") == []
    base = row(findings, MEANS, arm="real text", parameters=1000, measure=LOSS)
    assert base["value"] == pytest.approx(2.0 + 0.1 / 3) and base["generation"] == 0
    alone = declared("collapse").analyze([run for run in runs if run.config["study"]["arm"] != "accumulate"])
    fewer = row(alone, MEANS, arm="real text", parameters=1000, measure=LOSS)
    assert fewer["hi"] - fewer["lo"] == pytest.approx(base["hi"] - base["lo"], rel=0.05)


def test_stages_of_fine_tuning_are_compared_with_the_model_before(runs):
    tuned = rows(declared("collapse").analyze(runs), TUNED, measure=LOSS)
    assert {each["arm"] for each in tuned} == {"narrow fine-tuning"}
    assert [each["value"] for each in tuned] == pytest.approx([0.4, 0.4])


@pytest.mark.slow
def test_lines_begin_with_the_first_generation_and_show_human_text(runs):
    charts = draw_all(declared("collapse").analyze(runs))
    assert list(charts) == ["generations", "stages"]
    shown = [each for each in charts["generations"]["datasets"].values() if "at" in each[0]]
    lines = {each["arm"] for data in shown for each in data if each.get("generation") == 0}
    assert lines == {"replace", "accumulate"} and "dashed gray: human text" in str(charts["generations"]["title"])
    assert [panel["title"] for panel in charts["generations"]["concat"]] == [LOSS, DISTINCT]


@pytest.mark.slow
def test_an_arm_that_ended_early_is_not_tested(runs):
    early = [run for run in runs if run.config["study"] != {"arm": "accumulate", "generation": 2}]
    findings = declared("collapse").analyze(early)
    first = {"arm": "real", "generation": 0}
    assert claim(findings, "distinct_2", first, arm="accumulate").decision == "not tested"
    assert claim(findings, "distinct_2", first, arm="replace").decision == "supported"


def test_two_runs_of_a_place_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("collapse").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
