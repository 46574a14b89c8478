"""The study compare on runs with known losses: the decision, its exit code, and what findings.json says of it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from fake_run import fake_score

from kleiber.config.compose import read_choice
from kleiber.config.labels import readable
from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import LRS, SEEDS
from kleiber.studies.compare.study import Compare
from kleiber.studies.study import SCHEMA_FILE, PlannedPoint, content

from ..arm_runs import write

STUDY = {"_target_": "kleiber.studies.Compare"}


def claims_of(findings):
    return [result.to_json() for result in findings.claims]


def two(tmp_path, gap=-0.1, **second):
    write(tmp_path, STUDY, "base", 3.0)
    write(tmp_path, STUDY, "changed", 3.0 + gap, **second)
    return read_runs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gap", "decision", "code"), [pytest.param(-0.1, "supported", 0, marks=pytest.mark.slow), (0.1, "contradicted", 5)]
)
def test_the_second_arm_is_better_or_worse_and_a_script_can_read_it(tmp_path, capsys, gap, decision, code):
    two(tmp_path, gap)
    assert main(["report", str(tmp_path)]) == code
    findings = json.loads((tmp_path / "findings.json").read_text())
    jsonschema.validate(findings, json.loads(SCHEMA_FILE.read_text()))
    assert (findings["decision"], findings["exit_code"]) == (decision, code)
    (claim,), (estimate,) = findings["claims"], findings["estimates"]
    assert (claim["of"], claim["against"], claim["decision"]) == ({"arm": "changed"}, {"arm": "base"}, decision)
    assert (estimate["arm"], estimate["against"]) == ("changed", "base") and estimate["tuned"]
    assert claim["value"] == estimate["value"] == pytest.approx(gap) and estimate["n"] == 3
    assert main(["report", str(tmp_path), "--exit-zero"]) == 0


@pytest.mark.parametrize("second", [{"seeds": 2}, {"best": 0.08}, {"lrs": [0.01, 0.02, 0.04]}])
def test_an_untuned_arm_decides_nothing(tmp_path, second):
    (claim,) = claims_of(Compare().analyze(two(tmp_path, -5.0, **second)))
    assert claim["decision"] == "not tested" and claim["why"] and claim["tuned"] is False


def test_where_a_seed_diverged_at_every_rate_there_is_no_difference_but_a_report(tmp_path):
    """The findings, without the cost of drawing figures, which are all of runs that have a loss."""
    runs = [
        replace(run, status="diverged", summary={**run.summary, "stages": []}) if run.config["seed"] == 0 else run
        for run in two(tmp_path)
    ]
    found = Compare().analyze(runs)
    (claim,) = claims_of(found)
    assert claim["decision"] == "not tested" and "1 of 3 seeds diverged" in claim["why"]
    assert "nan" not in found.answer and "inf" not in found.answer
    assert claim["value"] is None and all(row["value"] is None for row in found.tables["Differences"])
    trends = found.tables["Trends of differences"]
    assert [row["n"] for row in trends] == [2] and math.isfinite(trends[0]["value"])
    assert found.figures["arms"]() and found.figures["tuning"]() and "differences" not in found.figures


def test_of_a_single_learning_rate_no_tuning_is_drawn(tmp_path):
    for arm in ("base", "changed"):
        write(tmp_path, STUDY, arm, 3.0, lrs=[0.02])
    assert "tuning" not in Compare().analyze(read_runs(tmp_path)).figures


def test_an_arm_without_a_finished_run_is_named_by_the_number_of_those_left(tmp_path):
    with pytest.raises(ValueError, match=r"study\.sizes: big"):
        Compare(sizes=["big"]).check_plan(planned("a", "b"))
    with pytest.raises(ValueError, match=r"that have it: 1, needed: 2"):
        Compare().analyze(two(tmp_path, status="running"))


def add(stage, measure, value):
    """Adds a metric to a stage of summary.json, with its score where a class declares it."""
    stage["metrics"][measure] = value
    if (score := fake_score(measure, value)) is not None:
        stage["scores"][measure] = score


@pytest.mark.parametrize(
    ("measure", "claims"), [("eval/perplexity/docs/position/64", ()), ("mine", [{"arm": "changed", "against": "base"}])]
)
def test_arms_are_tuned_in_the_direction_of_the_measure(tmp_path, measure, claims):
    """By what the runs recorded of it, or of claims, whose default direction is lower."""
    runs = two(tmp_path)
    for run in runs:
        for stage in run.stages[1:]:
            add(stage, measure, stage["metrics"]["val/docs/loss"])
    if measure == "mine":
        with pytest.raises(ValueError, match=r"study\.measure=mine"):
            Compare(measure=measure).analyze(runs)
    found = Compare(measure=measure, claims=claims).analyze(runs)
    assert {row["best lr"] for row in found.tables["Arms"]} == {0.02}
    (claim,) = claims_of(found)
    assert (claim["decision"], claim["direction"]) == ("supported", "lower")


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["loss", "val/docs/accuracy"])
def test_the_claim_is_about_the_first_two_arms_of_the_design_also_where_the_first_has_no_value(tmp_path, measure):
    """All runs of the first arm diverged, or lack the measure."""
    write(tmp_path, STUDY, "first", 3.0, status="diverged" if measure == "loss" else "finished")
    runs = two(tmp_path)
    for run in runs:
        run.config["design"] = {"arms": {"first": {}, "base": {}, "changed": {}}}
        for stage in run.stages[1:] if run.config["study"]["arm"] != "first" else ():
            add(stage, "val/docs/accuracy", 1 / stage["metrics"]["val/docs/loss"])
    (claim,) = claims_of(Compare(measure=measure).analyze(runs))
    assert (claim["of"], claim["against"], claim["value"]) == ({"arm": "base"}, {"arm": "first"}, None)
    assert claim["decision"] == "not tested" and "first" in claim["why"] and measure in claim["why"]


@pytest.mark.slow
def test_an_undecided_claim_tells_how_many_seeds_would_decide_it(tmp_path):
    runs = two(tmp_path)
    for run in runs:
        if run.config["study"]["arm"] == "changed":
            for stage in run.stages[1:]:
                stage["metrics"]["val/docs/loss"] += 0.1 + [0.02, -0.02, -0.015][run.config["seed"]]
    (claim,) = claims_of(Compare().analyze(runs))
    assert claim["decision"] == "undecided" and claim["more_seeds_needed"] > 0
    found = Compare(claims=[{"arm": "changed", "against": "base"}] * 2).analyze(runs)
    (decided,) = {(claim["lo"], claim["hi"]) for claim in claims_of(found)}
    chart = found.figures["differences"]().to_dict()
    drawn = [row for table in chart["datasets"].values() for row in table if row.get("name") == "changed"]
    assert [(row["lo"], row["hi"]) for row in drawn] == [decided] and "90% intervals" in str(chart["title"])


def test_the_variance_of_a_study_is_moderated_or_separate(tmp_path):
    runs = two(tmp_path)
    (paired,) = claims_of(Compare().analyze(runs))
    assert paired["method"] == "Student's t over seeds, paired; vertex of a parabola in log rate", "seeds are equal"
    for run in runs:
        if run.config["study"]["arm"] == "changed":
            for stage in run.stages[1:]:
                stage["metrics"]["val/docs/loss"] += [0.02, -0.02, 0.0][run.config["seed"]]
    (shared,) = claims_of(Compare().analyze(runs))
    assert shared["method"].startswith("moderated t over seeds, unpaired; ")
    assert shared["prior"]["cells"] == 6 and shared["prior"]["sd"] > 0
    (separate,) = claims_of(Compare(variance="separate").analyze(runs))
    assert separate["prior"] is None and separate["method"].startswith("Student's t over seeds, paired; ")
    with pytest.raises(ValueError, match=r"study\.variance=pooled must be one of moderated, separate"):
        Compare(variance="pooled")


def test_claims_share_the_error_rate_and_the_worst_of_them_is_told(tmp_path):
    runs = two(tmp_path)
    claims = [{"arm": "changed", "against": "base"}, {"arm": "base", "against": "changed"}]
    found = Compare(claims=claims).analyze(runs)
    decided, (alone,) = claims_of(found), claims_of(Compare().analyze(runs))
    assert [row["decision"] for row in decided] == ["supported", "contradicted"]
    assert content(found, "x", runs, 0.9)["decision"] == "contradicted"
    assert decided[0]["hi"] >= alone["hi"]


def test_the_difference_is_told_at_everything_that_can_be_held_equal(tmp_path):
    write(tmp_path, STUDY, "base", 3.0)
    write(tmp_path, STUDY, "slow", 2.9, speed=5e3, total=800_000)
    table = {row["equal"]: row for row in Compare().analyze(read_runs(tmp_path)).tables["Differences"]}
    assert table["training tokens"]["value"] == pytest.approx(-0.1)
    assert table["training time"]["value"] > table["training tokens"]["value"]
    assert table["parameters"]["value"] is None and table["parameters"]["ratio"] == pytest.approx(2.0)
    (claim,) = claims_of(Compare(equal="params").analyze(read_runs(tmp_path)))
    assert claim["decision"] == "not tested" and "2.00" in claim["why"]


@pytest.mark.parametrize(
    "wrong",
    [{"equal": "money"}, {"claims": [{"against": "a"}]}, {"claims": [{"arm": "a", "against": "b", "x": 1}]},
     {"claims": [{"arm": "a", "against": "b", "direction": "x"}]}],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_with_its_key(wrong):
    with pytest.raises(ValueError, match=f"study.{next(iter(wrong))}"):
        Compare(**wrong)


def test_a_claim_about_an_arm_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nobody"):
        Compare(claims=[{"arm": "nobody", "against": "base"}]).analyze(two(tmp_path))


def planned(*arms):
    common = {"optimizer": {"lr": 0.01}, "seed": 0}
    return [PlannedPoint(Path("r"), {"study": {"arm": arm}, **common}, 1.0, 1.0) for arm in arms]


def test_a_plan_without_the_arms_of_a_claim_is_refused_before_training():
    study = Compare(claims=[{"arm": "b", "against": "a"}])
    for text, arm in zip(study.check_plan(planned("a", "b")), "ab", strict=True):
        assert f"for {arm}, only 1 learning rate and 1 seed were tried, and {LRS} and {SEEDS} are needed" in text
    base = PlannedPoint(Path("base"), {"study": {}}, 1.0, 1.0)  # of no arm: they start from it
    assert len(study.check_plan([base, *planned("a", "b")])) == 2
    with pytest.raises(ValueError, match="b is not an arm"):
        study.check_plan(planned("a", "c"))
    with pytest.raises(ValueError, match=r"study\.sizes: big"):
        Compare(sizes=["big"]).check_plan(planned("a", "b"))
    with pytest.raises(ValueError, match=r"design\.arms=a: "):
        Compare().check_plan([base, *planned("a", "a")])
    points = planned("a", "b")
    for point in points:
        point.config["design"] = {"arms": {"a": {}, "b": {}, "merged": {}, "left_out": None}}
    with pytest.raises(ValueError, match="merged has the same runs"):
        Compare().check_plan(points)


def test_a_claim_has_its_own_measure_and_quantity_and_an_arm_without_runs_is_not_tested(tmp_path):
    runs = two(tmp_path, speed=5e3)
    for run in runs:
        run.config["design"] = {"arms": {"base": {}, "changed": {}, "late": {}}}
        for row in run.rows:
            row["moe/dead/0"] = (3.0 if run.config["study"]["arm"] == "changed" else 1.0) + 0.1 * run.config["seed"]
    claims = [
        {"arm": "changed", "against": "base"},
        {"arm": "changed", "against": "base", "equal": "seconds"},
        {"arm": "changed", "against": "base", "measure": "moe/dead", "direction": "higher", "margin": 1.5},
        {"arm": "late", "against": "base"},
    ]
    findings = Compare(claims=claims).analyze(runs)
    estimates = claims_of(findings)
    assert [row["decision"] for row in estimates] == ["supported", "undecided", "supported", "not tested"]
    assert [row["value"] for row in estimates[:3]] == pytest.approx([-0.1, 0.0, 2.0], abs=2e-3)
    assert estimates[2]["unit"] == "experts per layer" and estimates[2]["measure"] == "moe/dead"
    assert {row["unit"] for row in findings.tables["Differences"]} <= {"nats per token", None}
    assert "by_dead" in findings.figures and "tokens" in findings.figures
    timed = [row for row in findings.tables["Differences"] if row["equal"] == "training time" and row["lo"] is not None]
    assert ("time" in findings.figures) == (len(timed) > 1)


LOSSES = {
    "sparsity": {"moe": 2.9, "dense": 3.0, "dense_total": 2.8, "dense_memory": 2.85},
    "routers": {"topk": 3.0, "sigmoid": 3.0, "lossfree": 3.0, "hash": 3.1, "random": 3.3, "unbalanced": 3.0},
    "upcycling": {"upcycled": 2.9, "continued": 3.0, "scratch": 3.2},
    "moe_gain": {"moe": 2.9, "dense": 3.0, "moe_96": 2.8, "dense_96": 2.9},
}
DECISIONS = {
    "sparsity": ["supported", "supported", "supported", "not tested"],
    "routers": ["supported", "supported", "supported", "contradicted"],
    "upcycling": ["supported", "supported"],
    "moe_gain": ["supported"] * 4,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_a_study_that_is_claims_alone_decides_them(tmp_path, name):
    """sparsity has a dense model of other memory, routers no more dead experts without balance."""
    for arm, loss in LOSSES[name].items():
        total = 900_000 if arm in ("moe", "dense_total") else 400_000
        write(tmp_path, STUDY, arm, loss, total=total, core=200_000 if arm.endswith("_96") else 100_000)
    node = read_choice("study", name)["study"]
    study = Compare(**{str(key): value for key, value in node.items() if key != "_target_"})
    runs = read_runs(tmp_path)
    for run in runs if name == "moe_gain" else ():
        for metrics in [stage["metrics"] for stage in run.leaves]:
            metrics |= {f"val/builtin/{domain}/loss": metrics["val/docs/loss"] for domain in ("docs", "code")}
    findings = study.analyze(runs)
    claims = claims_of(findings)
    assert [row["decision"] for row in claims] == DECISIONS[name]
    values = {row["against"]["arm"] + row["of"]["arm"]: row["value"] for row in claims}
    if name == "moe_gain":
        assert [row["value"] for row in findings.tables["Trends of differences"]] == pytest.approx([0, 0, 0], abs=1e-9)
    if name == "upcycling":
        assert values == pytest.approx({"continuedupcycled": -0.1, "scratchupcycled": -0.3})
    if name in ("sparsity", "routers"):
        drawn = {title: draw().to_json() for title, draw in findings.figures.items()}
        assert "sizes" in drawn if name == "sparsity" else {"by_dead", "by_max_violation"} <= drawn.keys()
        assert all(readable(arm) in drawn["tuning"] for arm in LOSSES[name])
    if name == "routers":
        assert {row["arm"] for row in findings.tables["Differences"]} == set(LOSSES[name]) - {"topk"}


@pytest.mark.slow
def test_figures_and_tables_name_the_measure_that_is_compared(tmp_path):
    runs = two(tmp_path)
    for run in runs:
        for stage in run.stages[1:]:
            add(stage, "val/docs/accuracy", 1 / stage["metrics"]["val/docs/loss"])
    claims = [{"arm": "changed", "against": "base", "direction": "higher"}]
    findings = Compare(measure="val/docs/accuracy", claims=claims).analyze(runs)
    assert claims_of(findings) == claims_of(Compare(measure="val/docs/accuracy").analyze(runs))
    assert [row["decision"] for row in claims_of(findings)] == ["supported"]
    assert "val/docs/accuracy" in findings.tables["Arms"][0] and "loss" not in findings.tables["Arms"][0]
    for draw in findings.figures.values():
        text = draw().to_json()
        assert "ccuracy on docs" in text and "nats" not in text


@pytest.mark.slow
def test_keys_tell_arms_apart_and_than_compares_their_differences(tmp_path):
    """The change is worth 0.3 at width 64 and 0.1 at width 32."""
    for width, gap in ((32, -0.1), (64, -0.3)):
        for arm, loss in (("base", 3.0), ("changed", 3.0 + gap)):
            write(tmp_path / str(width), STUDY, arm, loss)
    runs = read_runs(tmp_path)
    for run in runs:
        run.config["model"] = {**run.config["model"], "width": int(run.folder.parent.name)}
    keys = {"width": "model.width"}
    interaction = {"of": {"arm": "changed", "width": 64}, "against": {"arm": "base"}, "than": {"width": 32}}
    each = {"of": {"arm": "changed"}, "each": {"width": "all"}, "against": {"arm": "base"}}
    found = claims_of(Compare(keys=keys, claims=[interaction, each]).analyze(runs))
    assert [row["value"] for row in found] == pytest.approx([-0.2, -0.1, -0.3])
    assert [row["of"].get("width") for row in found] == [64, 32, 64] and found[0]["than"] == {"width": 32}
    with pytest.raises(ValueError, match=r"study\.claims"):
        Compare(keys=keys, claims=[{"arm": "changed", "against": "base"}]).analyze(runs)
    with pytest.raises(ValueError, match=r"study\.keys"):
        Compare(keys=keys)
