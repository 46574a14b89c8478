"""The law of a panel: fitted to what determines it, refused where its declaration is wrong."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.panel import read_law

from .joint_runs import write_mixtures, write_repeats
from .panels import declared
from .trunk_runs import SIZES, trees

MIXTURE = {"name": "joint_moe", "inputs": {"N": "active", "D": "tokens", "X": "expansion"}, "measure": "loss"}
CONSTRAINED = {"name": "data_constrained", "inputs": {"N": "active", "D": "tokens", "U": "unique"}, "measure": "loss"}


@pytest.mark.slow
def test_the_joint_law_is_fitted_to_size_tokens_and_experts(tmp_path):
    write_mixtures(tmp_path)
    findings = declared("moe_law", law={**MIXTURE, "bootstrap": 20}).analyze(read_runs(tmp_path))
    assert findings.law is not None and findings.law["law"] == "joint_moe"
    assert findings.verdicts == findings.law["verdicts"] and findings.text


def test_points_that_do_not_determine_a_law_say_so(tmp_path):
    trees(tmp_path, SIZES[:1], [1e6, 2e6], 1, config={"model": {"mlp": {"num_experts": 2, "k": 2}}})
    findings = declared("moe_law").analyze(read_runs(tmp_path))
    assert findings.law is None and [verdict["code"] for verdict in findings.verdicts] == ["no_law"]


@pytest.mark.parametrize(
    "law",
    [{"name": "joint_moe", "inputs": {"N": "active"}}, {**MIXTURE, "bootstrap": -1}, {**MIXTURE, "measure": "losses"},
     {**MIXTURE, "inputs": {"N": "active", "D": "tokens", "X": "loads"}}],
)  # fmt: skip
def test_a_law_that_is_wrong_is_refused_with_its_key(law):
    with pytest.raises(ValueError, match=r"study\.law"):
        declared("moe_law", law=law)


@pytest.mark.slow
def test_the_data_constrained_law_is_fitted(tmp_path):
    write_repeats(tmp_path, [1e6, 2e6, 4e6, 8e6])
    findings = declared("data_repeat", law={**CONSTRAINED, "bootstrap": 20}).analyze(read_runs(tmp_path))
    assert findings.law is not None and findings.law["law"] == "data_constrained"
    assert "cluster" in findings.law["bootstrap"]["method"], "branches share the noise of their trunk"


def test_a_plan_of_one_value_of_an_input_is_warned_of():
    places = [{"active": size, "tokens": tokens} for size in (1000, 1010) for tokens in (1e6, 2e6)]
    law = read_law(MIXTURE, ["loss"], ["active", "tokens", "expansion"])
    assert law is not None
    (warning,) = law.plan_warnings(places)
    assert "N (active)" in warning and "tokens" not in warning, "what only runs tell is not checked"
    assert law.plan_warnings([*places, {"active": 2000, "tokens": 1e6}]) == []
