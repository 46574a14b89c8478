"""The study compare on runs with known losses: the decision, its exit code, and what findings.json says of it."""

import json

import jsonschema
import pytest

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.studies.compare.study import Compare, read_claim

from ..arm_runs import write

STUDY = {"_target_": "kleiber.studies.Compare"}
NUMBER = {"type": ["number", "null"]}
SCHEMA = {
    "type": "object",
    "required": ["schema", "measure", "level", "decision", "why", "estimates", "more_seeds_needed"],
    "properties": {
        "schema": {"const": "kleiber.compare/1"},
        "decision": {"enum": ["supported", "contradicted", "undecided", "not tested"]},
        "more_seeds_needed": {"type": ["integer", "null"]},
        "estimates": {
            "type": "array", "minItems": 1,
            "items": {
                "type": "object",
                "required": ["arm", "against", "equal", "value", "lo", "hi", "n", "unit", "tuned"],
                "properties": {"value": NUMBER, "lo": NUMBER, "hi": NUMBER, "tuned": {"type": "boolean"}},
            },
        },
    },
}  # fmt: skip


def two(tmp_path, gap=-0.1, **second):
    write(tmp_path, STUDY, "base", 3.0)
    write(tmp_path, STUDY, "changed", 3.0 + gap, **second)
    return read_runs(tmp_path)


@pytest.mark.parametrize(("gap", "decision", "code"), [(-0.1, "supported", 0), (0.1, "contradicted", 5)])
def test_the_second_arm_is_better_or_worse_and_a_script_can_read_it(tmp_path, capsys, gap, decision, code):
    two(tmp_path, gap)
    assert main(["report", str(tmp_path)]) == code
    findings = json.loads((tmp_path / "findings.json").read_text())
    jsonschema.validate(findings, SCHEMA)
    assert findings["decision"] == decision
    (estimate,) = findings["estimates"]
    assert (estimate["arm"], estimate["against"]) == ("changed", "base") and estimate["tuned"]
    assert estimate["value"] == pytest.approx(gap) and estimate["n"] == 3
    assert f"{gap:+.4f}" in findings["headline"]


@pytest.mark.parametrize("second", [{"seeds": 2}, {"best": 0.08}, {"lrs": [0.01, 0.02, 0.04]}])
def test_an_untuned_arm_decides_nothing(tmp_path, second):
    findings = Compare().analyze(two(tmp_path, -5.0, **second)).comparison
    assert findings is not None and findings["decision"] == "not tested" and findings["why"]


def test_an_arm_without_a_finished_run_is_named_by_the_number_of_those_left(tmp_path):
    with pytest.raises(ValueError, match="1 arms"):
        Compare().analyze(two(tmp_path, status="running"))


def test_an_undecided_claim_tells_how_many_seeds_would_decide_it(tmp_path):
    runs = two(tmp_path)
    for run in runs:
        if run.config["study"]["arm"] == "changed":
            for stage in run.stages[1:]:
                stage["metrics"]["val/docs/loss"] += 0.1 + [0.02, -0.02, -0.015][run.config["seed"]]
    findings = Compare().analyze(runs).comparison
    assert findings is not None and findings["decision"] == "undecided" and findings["more_seeds_needed"] > 0


def test_claims_share_the_error_rate_and_the_worst_of_them_is_told(tmp_path):
    runs = two(tmp_path)
    claims = [{"arm": "changed", "against": "base"}, {"arm": "base", "against": "changed"}]
    findings = Compare(claims=claims).analyze(runs).comparison
    alone = Compare().analyze(runs).comparison
    assert findings is not None and alone is not None
    assert [row["decision"] for row in findings["estimates"]] == ["supported", "contradicted"]
    assert findings["decision"] == "contradicted"
    assert findings["estimates"][0]["hi"] >= alone["estimates"][0]["hi"]


def test_the_difference_is_told_at_everything_that_can_be_held_equal(tmp_path):
    write(tmp_path, STUDY, "base", 3.0)
    write(tmp_path, STUDY, "slow", 2.9, speed=5e3, total=800_000)
    table = {row["equal"]: row for row in Compare().analyze(read_runs(tmp_path)).tables["Differences"]}
    assert table["training tokens"]["value"] == pytest.approx(-0.1)
    assert table["training time"]["value"] > table["training tokens"]["value"]
    assert table["parameters"]["value"] is None and table["parameters"]["ratio"] == pytest.approx(2.0)
    seconds = Compare(equal="params").analyze(read_runs(tmp_path)).comparison
    assert seconds is not None and seconds["decision"] == "not tested" and "2.00" in seconds["why"]


@pytest.mark.parametrize(
    "wrong",
    [{"equal": "money"}, {"claims": [{"arm": "a"}]}, {"claims": [{"arm": "a", "against": "b", "x": 1}]},
     {"claims": [{"arm": "a", "against": "b", "direction": "x"}]}],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_with_its_key(wrong):
    with pytest.raises(ValueError, match=f"study.{next(iter(wrong))}"):
        Compare(**wrong)


def test_a_claim_about_an_arm_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nobody"):
        Compare(claims=[{"arm": "nobody", "against": "base"}]).analyze(two(tmp_path))
    assert read_claim({"arm": "a", "against": "b", "margin": 0.1}, "x").margin == 0.1


def test_figures_and_tables_name_the_measure_that_is_compared(tmp_path):
    runs = two(tmp_path)
    for run in runs:
        for stage in run.stages[1:]:
            stage["metrics"]["val/docs/accuracy"] = 1 / stage["metrics"]["val/docs/loss"]
    findings = Compare(measure="val/docs/accuracy").analyze(runs)
    assert findings.comparison is not None and findings.comparison["decision"] == "supported"
    assert "val/docs/accuracy" in findings.tables["Arms"][0] and "loss" not in findings.tables["Arms"][0]
    for draw in findings.figures.values():
        text = draw().to_json()
        assert "accuracy (docs)" in text and "nats" not in text
