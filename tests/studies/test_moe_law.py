"""The study of the mixture law compares numbers of experts at equal active size and seed."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.moe_law import MoELaw

from .trunk_runs import SIZES, trees


def test_experts_are_compared_at_equal_active_size_and_seed(tmp_path):
    for experts in (2, 4, 8, 16):
        place, X = tmp_path / f"e{experts}", experts / 2
        model = {"mlp": {"num_experts": experts, "k": 2}}
        trees(place, SIZES[:3] + 32 * experts, [1e6, 2e6, 4e6], 1, lambda X=X, **_: -0.02 * np.log2(X),
              config={"model": model})  # fmt: skip
    findings = MoELaw(bootstrap=20).analyze(read_runs(tmp_path))
    assert (
        findings.headline.startswith("X = 8 lowers the loss by 0.0")
        and findings.law is not None
        and findings.law["law"] == "joint_moe"
    )
    gains = [row["gain (nats)"] for row in findings.tables["Gain over X = 1 at equal active size"] if row["X"] == 8]
    assert np.mean(gains) == pytest.approx(0.06, abs=0.01)
    assert "has X = 1" in MoELaw().analyze(read_runs(tmp_path / "e8")).headline
