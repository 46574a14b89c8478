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
    gap = {row["along"]: row for row in findings.tables["Difference"]}
    assert gap["N"]["difference"] < 0 and "less steeply" in gap["N"]["in words"], "a floor of 3 nats flattens logs"
    assert all(row["lo"] < row["exponent"] < row["hi"] for row in findings.tables["Local exponents"])
    part = ClmVsMlm().analyze(read_runs(tmp_path / "clm"))
    assert "no comparison yet" in part.headline
