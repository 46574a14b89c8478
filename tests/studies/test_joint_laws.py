"""The mixture law compares numbers of experts at equal active size; the data-constrained law recovers repetition."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs

from .panels import declared, rows
from .trunk_runs import SIZES, stages_of, trees

GAINS, EXCESS = "Gain over X = 1 at equal active size", "Excess over fresh text of the same length"
MIXTURE = {"name": "joint_moe", "inputs": {"N": "active", "D": "tokens", "X": "expansion"}, "measure": "loss"}
CONSTRAINED = {"name": "data_constrained", "inputs": {"N": "active", "D": "tokens", "U": "unique"}, "measure": "loss"}


def write_mixtures(folder):
    """Models of 2 to 16 experts whose loss falls by 0.02 nats with each doubling."""
    for experts in (2, 4, 8, 16):
        X, model = experts / 2, {"mlp": {"num_experts": experts, "k": 2}}
        trees(folder / f"e{experts}", SIZES[:3] + 32 * experts, [1e6, 2e6, 4e6], 1,
              lambda X=X, **_: -0.02 * np.log2(X), config={"model": model})  # fmt: skip


def test_experts_are_compared_at_equal_active_size_and_seed(tmp_path):
    write_mixtures(tmp_path)
    findings = declared("moe_law", law=None).analyze(read_runs(tmp_path))
    at_eight = rows(findings, GAINS, **{"X = experts / active experts": 8})
    assert len(at_eight) == 9 and np.mean([each["value"] for each in at_eight]) == pytest.approx(0.06, abs=0.01)
    assert "X = 1 (all experts active) minus that of the mixture is +0.0" in findings.answer.replace(
        " is 0.", " is +0."
    )
    assert [*findings.figures] == ["gain"]
    alone = declared("moe_law", law=None).analyze(read_runs(tmp_path / "e8"))
    assert GAINS not in alone.tables, "no run has X = 1"


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


def write_repeats(folder, tokens):
    """Models on 500K and 2M tokens of text and on fresh text, whose loss rises by 0.01 nats with each epoch."""
    for unique in (5e5, 2e6, None):
        place, read = folder / f"u{unique or 0:g}", unique or 1e9
        trees(place, SIZES[:2], tokens, 2, lambda N, D, seed, u=read: 0.01 * max(0.0, D / u - 1),
              config={"data": {"unique": unique}})  # fmt: skip
        stages_of(place, data={"tokens": read})


def test_repetition_costs_what_it_does_against_fresh_text(tmp_path):
    write_repeats(tmp_path, [1e6, 8e6])
    findings = declared("data_repeat", law=None).analyze(read_runs(tmp_path))
    most = rows(findings, EXCESS, epochs=16)
    assert [each["value"] for each in most] == pytest.approx([0.15, 0.15], abs=0.01)
    assert {each["n"] for each in findings.tables[EXCESS]} == {2}, "two sizes are no seeds"
    four = [result for result in findings.claims if result.claim.of["epochs"] == 4]
    assert len(four) == 2 and {str(result.decision) for result in four} <= {"contradicted", "undecided"}
    assert [*findings.figures] == ["repetition"]
    part = declared("data_repeat", law=None).analyze(read_runs(tmp_path / "u500000"))
    assert EXCESS not in part.tables, "nothing to compare"


@pytest.mark.slow
def test_the_data_constrained_law_is_fitted(tmp_path):
    write_repeats(tmp_path, [1e6, 2e6, 4e6, 8e6])
    findings = declared("data_repeat", law={**CONSTRAINED, "bootstrap": 20}).analyze(read_runs(tmp_path))
    assert findings.law is not None and findings.law["law"] == "data_constrained"
    assert "cluster" in findings.law["bootstrap"]["method"], "branches share the noise of their trunk"
