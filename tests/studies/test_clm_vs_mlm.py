"""Objectives are compared by the slopes of their losses, not by their levels."""

from kleiber.records.catalog import read_runs
from kleiber.studies.clm_vs_mlm import ClmVsMlm

from .trunk_runs import SIZES, stages_of, trees


def test_objectives_compare_slopes_and_not_levels(tmp_path):
    for kind, level in (("clm", 0.0), ("mlm", 3.0)):
        place = tmp_path / kind
        trees(place, SIZES[:3], [1e6, 2e6, 4e6], 2, tag=kind, shift=lambda D, level=level, **_: level)
        stages_of(place, objective=kind)
    findings = ClmVsMlm().analyze(read_runs(tmp_path))
    along_n, along_d = findings.tables["Difference of the exponents, second objective less first"]
    assert along_n["along"] == "N" and along_n["value"] < along_n["hi"] < 0, "a floor of 3 nats flattens logs"
    assert [verdict["text"].count("less steeply") for verdict in findings.verdicts] == [1, along_d["hi"] < 0]
    assert all(row["lo"] < row["exponent"] < row["hi"] for row in findings.tables["Local exponents"])
    part = ClmVsMlm().analyze(read_runs(tmp_path / "clm"))
    assert "no comparison yet" in part.headline
