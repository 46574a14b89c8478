"""The study of upcycling compares arms that start from one dense model."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.upcycling import Upcycling

from .arm_runs import write


def test_upcycling_compares_at_equal_flops(tmp_path):
    study = {"_target_": "kleiber.studies.Upcycling"}
    for arm, loss in (("upcycled", 2.9), ("continued", 3.0), ("scratch", 3.2)):
        write(tmp_path, study, arm, loss)
    findings = Upcycling().analyze(read_runs(tmp_path))
    assert [gap["value"] for gap in findings.tables["Comparisons"]] == pytest.approx([-0.1, -0.3])
    assert "continued -0.1000" in findings.headline and not findings.verdicts
    write(tmp_path, study, "larger", 2.8, core=200_000)
    assert "0.50" in Upcycling(against=["larger"]).analyze(read_runs(tmp_path)).verdicts[0]["text"]
