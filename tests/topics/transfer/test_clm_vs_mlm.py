"""Objectives are compared by the slopes of their losses, not by their levels."""

from pathlib import Path

import pytest
from studies.colors import colors
from studies.trunk_runs import SIZES, stages_of, trees

from kleiber.records.catalog import read_runs
from kleiber.studies.study import PlannedPoint
from kleiber_topics.transfer.clm_vs_mlm import LEAST, ClmVsMlm, too_few


def test_objectives_compare_slopes_and_not_levels(tmp_path):
    for kind, level in (("clm", 0.0), ("mlm", 3.0)):
        place = tmp_path / kind
        trees(place, SIZES[:3], [1e6, 2e6, 4e6], 2, tag=kind, shift=lambda D, level=level, **_: level)
        stages_of(place, objective=kind)
    findings = ClmVsMlm().analyze(read_runs(tmp_path))
    along_n, along_d = findings.tables["Difference of the exponents, second objective minus first"]
    assert along_n["along"] == "N" and along_n["value"] < along_n["hi"] < 0, "a floor of 3 nats flattens logs"
    steeper = findings.claims[0]
    assert steeper.claim.of == {"objective": "mlm", "along": "N"} and steeper.decision == "contradicted"
    assert steeper.estimate.value == along_n["value"] and along_d["along"] == "D"
    assert all(row["lo"] < row["exponent"] < row["hi"] for row in findings.tables["Local exponents"])
    assert colors(findings.figures["sizes"]().to_dict()).keys() == {"CLM", "MLM"}
    part = ClmVsMlm().analyze(read_runs(tmp_path / "clm"))
    assert "no comparison yet" in part.answer


def test_exponents_need_five_points_of_two_sizes_and_two_lengths():
    two_sizes, two_lengths = [1.0, 2.0] * LEAST, [1e6] * LEAST + [2e6] * LEAST
    assert too_few(two_sizes, two_lengths) == ""
    for wrong in (
        (two_sizes[:4], two_lengths[-2:] + two_lengths[:2]),
        ([1.0] * 10, two_lengths),
        (two_sizes, [1e6] * 10),
    ):
        assert str(len(wrong[0])) in too_few(*wrong)


def planned(kind, points):
    config = {"objective": {"_target_": f"kleiber.objectives.{kind}"}, "seed": 0}
    return [PlannedPoint(Path("r"), config, N, D) for N, D in points]


def test_a_plan_names_the_objective_with_too_few_points_and_is_refused_where_no_objective_has_them():
    many = [(N, D) for N in (1e4, 2e4) for D in (1e6, 2e6, 4e6)]
    few = planned("MLM", many[:2])
    (warning,) = ClmVsMlm().check_plan([*planned("CLM", many), *few])
    assert warning.startswith("mlm: 2 points")
    with pytest.raises(ValueError, match="mlm"):
        ClmVsMlm().check_plan(few)
    with pytest.raises(ValueError, match="min_tokens"):
        ClmVsMlm(min_tokens=1e9).check_plan(few)
