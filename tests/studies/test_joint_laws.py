"""The mixture law compares numbers of experts at equal active size; the data-constrained law recovers repetition."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.joint_laws import DataRepeat, MoELaw

from .trunk_runs import SIZES, stages_of, trees


@pytest.mark.slow
def test_experts_are_compared_at_equal_active_size_and_seed(tmp_path):
    for experts in (2, 4, 8, 16):
        place, X = tmp_path / f"e{experts}", experts / 2
        model = {"mlp": {"num_experts": experts, "k": 2}}
        trees(place, SIZES[:3] + 32 * experts, [1e6, 2e6, 4e6], 1, lambda X=X, **_: -0.02 * np.log2(X),
              config={"model": model})  # fmt: skip
    findings = MoELaw(bootstrap=20).analyze(read_runs(tmp_path))
    assert "X = 8 is +0.0" in findings.answer
    assert findings.law is not None and findings.law["law"] == "joint_moe"
    gains = [row["gain (nats)"] for row in findings.tables["Gain over X = 1 at equal active size"] if row["X"] == 8]
    assert np.mean(gains) == pytest.approx(0.06, abs=0.01)
    assert "has X = 1" in MoELaw().analyze(read_runs(tmp_path / "e8")).answer


@pytest.mark.slow
def test_repetition_finds_the_cost_of_epochs_against_fresh_text(tmp_path):
    tokens = [1e6, 2e6, 4e6, 8e6]
    for unique in (5e5, 2e6, 1e9):
        place = tmp_path / f"u{unique:g}"
        trees(place, SIZES[:2], tokens, 2, lambda N, D, seed, u=unique: 0.01 * max(0.0, D / u - 1))
        stages_of(place, data={"tokens": unique})
    findings = DataRepeat(bootstrap=20).analyze(read_runs(tmp_path))
    rows = findings.tables["Excess over fresh text of the same length"]
    worst = max(rows, key=lambda row: row["epochs"])
    assert worst["epochs"] == 16 and worst["excess (nats)"] == pytest.approx(0.15, abs=0.01)
    assert len({row["N"] for row in rows}) == 2 and {row["seeds"] for row in rows} == {2}, "two sizes are no seeds"
    assert len(findings.figures) == 2
    assert findings.law is not None and findings.law["law"] == "data_constrained"
    assert "cluster" in findings.law["bootstrap"]["method"], "branches share the noise of their trunk"
    assert [result.decision for result in findings.claims] == ["contradicted"]
    part = DataRepeat().analyze(read_runs(tmp_path / "u500000"))
    assert "nothing to compare" in part.answer and not part.tables["Excess over fresh text of the same length"]
