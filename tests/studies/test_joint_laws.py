"""Mixtures are compared at equal active size; repetition with fresh text of the same length."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs

from .joint_runs import write_mixtures, write_repeats
from .panels import declared, rows

GAINS, EXCESS = "Gain over X = 1 at equal active size", "Excess over fresh text of the same length"


def test_experts_are_compared_at_equal_active_size_and_seed(tmp_path):
    write_mixtures(tmp_path)
    findings = declared("moe_law", law=None).analyze(read_runs(tmp_path))
    at_eight = rows(findings, GAINS, **{"X = experts / active experts": 8})
    assert len(at_eight) == 9 and np.mean([each["value"] for each in at_eight]) == pytest.approx(0.06, abs=0.01)
    assert " lower than with all experts active" in findings.answer
    assert [*findings.figures] == ["gain"]
    alone = declared("moe_law", law=None).analyze(read_runs(tmp_path / "e8"))
    assert GAINS not in alone.tables, "no run has X = 1"


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
