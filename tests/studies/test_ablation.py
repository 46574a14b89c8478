"""An ablation: planted gaps, crossings and gains are recovered, and held-out widths test its predictions."""

import math
from pathlib import Path

import pytest

from kleiber.studies.ablation import Ablation
from kleiber.studies.ablation_ladder import compute_gain, crossings, ladder_of, predict, read_scales
from kleiber.studies.claims import overall
from kleiber.studies.study import PlannedPoint

from .ablation_runs import with_divergence, write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ablation"), gap=lambda x: -0.02 + 0.005 * x)


@pytest.mark.slow
def test_a_planted_gap_is_predicted_and_its_claim_supported(runs):
    found = Ablation().analyze(runs)
    rows = {row["times the largest run"]: row for row in found.tables["Predicted gap"]}
    assert rows[10.0]["gap"] == pytest.approx(-0.015, abs=0.003) and rows[1.0]["gap"] == pytest.approx(-0.02, abs=0.002)
    assert list(rows) == [1.0, 2.0, 5.0, 10.0] and {row["sign"] for row in rows.values()} == {"better"}
    assert overall(found.claims) == "supported"
    assert len(found.tables["Gap by scale"]) == 6 and "supported" in found.answer
    ladder = ladder_of(read_scales(runs, "plain", "qk_norm"))
    gain = compute_gain(ladder, 0.9)
    assert gain.value == pytest.approx(10 ** (0.02 / 0.05), rel=0.1) and gain.lo < gain.value < gain.hi
    assert found.figures["gap"]().to_dict()["title"]


@pytest.mark.slow
def test_a_gap_that_changes_its_sign_has_its_crossing_in_the_interval(tmp_path):
    runs = write(tmp_path, gap=lambda x: 0.01 * (x - math.log10(3)))
    at, low, high = crossings(ladder_of(read_scales(runs, "plain", "qk_norm")), 0.9)
    assert at == pytest.approx(3, rel=0.3) and low is not None and low < at and (high is None or high > at)
    found = Ablation(target=100.0).analyze(runs)
    assert overall(found.claims) == "contradicted" and found.tables["Predicted gap"][0]["sign"] == "better"


@pytest.mark.slow
def test_rates_at_the_edge_and_unfinished_runs_are_not_tested(tmp_path):
    found = Ablation().analyze(write(tmp_path, best=0.2))
    assert overall(found.claims) == "not tested" and "untuned" in {row["code"] for row in found.caveats}


def test_arms_with_other_numbers_of_rates_are_not_tested(runs):
    few = [
        run for run in runs if run.config["study"]["arm"] == "plain" or 0.01 <= run.config["optimizer"]["lr"] <= 0.04
    ]
    found = Ablation().analyze(few)
    assert overall(found.claims) == "not tested"
    assert found.claims[0].why == "the arms have different numbers of learning rates: plain 5, qk_norm 3"
    (text,) = [row["text"] for row in found.caveats if row["code"] == "untuned"]
    assert text.startswith(found.claims[0].why) and {
        row["tuned"] for row in [result.to_json() for result in found.claims]
    } == {False}


@pytest.mark.slow
def test_a_plain_arm_that_does_not_improve_with_compute_has_no_worth(tmp_path):
    found = Ablation().analyze(write(tmp_path, gap=lambda x: -0.05, slope=0.0))
    assert found.tables["Worth in compute"][0]["value"] is None and "falls too little with compute" in found.answer


def test_no_changed_arm_and_a_single_scale_are_refused(runs):
    with pytest.raises(ValueError, match="scales"):
        ladder_of(read_scales(runs, "plain", "qk_norm")[:2])
    with pytest.raises(ValueError, match="0 arms"):
        Ablation().analyze([])


@pytest.mark.slow
def test_several_changes_share_the_plain_arm_and_one_level(tmp_path):
    runs = write(tmp_path, arms=("plain", "qk_norm", "worse"))
    found = Ablation().analyze(runs)
    gap = predict(ladder_of(read_scales(runs, "plain", "qk_norm")), 10.0, 0.9)
    (row,) = [
        row for row in found.tables["Predicted gap"] if (row["arm"], row["times the largest run"]) == ("qk_norm", 10)
    ]
    assert (row["gap"], row["lo"], row["hi"]) == (gap.value, gap.lo, gap.hi)
    assert overall(found.claims) == "contradicted"
    assert {row["arm"]: row["value"] > 1 for row in found.tables["Worth in compute"]} == {
        "qk_norm": True,
        "worse": False,
    }
    assert set(found.figures) == {"gap_by_arm", "gap_qk_norm", "gap_worse"}
    assert all(figure().to_dict()["title"] for figure in found.figures.values())


@pytest.mark.slow
def test_predictions_are_checked_at_held_out_widths(runs, tmp_path):
    found = Ablation(fit_width=64).analyze(runs)
    checks = found.tables["Predictions at held-out widths"]
    assert [(row["width"], row["sign"], row["holds"]) for row in checks] == [(128, "right", True)] * 2
    assert {row["fitted"] for row in found.tables["Gap by scale"] if row["width"] == 128} == {"held out"}
    assert "predictions at held-out widths" in found.answer and found.figures["gap"]().to_dict()
    turned = write(tmp_path, gap=lambda x: -0.02 if x < -0.5 else 0.02)  # only the largest models lose
    rows = Ablation(fit_width=64).analyze(turned).tables["Predictions at held-out widths"]
    assert [(row["sign"], row["holds"]) for row in rows][-1] == ("wrong", False)


def test_a_change_that_diverges_with_a_seed_at_every_rate_is_not_supported(runs):
    lost = with_divergence(runs, lambda arm, width, seed, lr: (arm, width, seed) == ("qk_norm", 128, 1))
    found = Ablation().analyze(lost)
    assert overall(found.claims) == "not tested"
    (text,) = [row["text"] for row in found.caveats if row["code"] == "diverged"]
    assert "qk_norm at width 128 (seed 1)" in text and "qk_norm at width 128 (seed 1)" in found.answer
    assert overall(Ablation(fit_width=64).analyze(lost).claims) == "not tested"


@pytest.mark.parametrize("arm", ["plain", "qk_norm"])
def test_an_arm_that_always_diverges_at_a_width_has_no_line_and_is_not_tested(runs, arm):
    found = Ablation().analyze(with_divergence(runs, lambda *at: at[:2] == (arm, 128)))
    assert overall(found.claims) == "not tested" and [*found.estimates] == []
    assert f"{arm} at width 128 (seeds 0, 1, 2)" in found.claims[0].why
    assert list(found.tables) == ["Gap by scale"] and found.figures == {}


def planned(**changes):
    """Two seeds of an arm at two widths and lengths; `changes` are further values of a key, all at one place."""
    points = []
    for seed in (0, 1):
        for width, tokens in ((32, 1e6), (64, 1e6), (32, 4e6)):
            for value in changes.get("z_loss", [0.0]):
                config = {"seed": seed, "model": {"width": width}, "optimizer": {"lr": 0.01},
                          "study": {"arm": "z_loss"}, "objective": {"z_loss": value}}  # fmt: skip
                points.append(PlannedPoint(Path(f"{seed}-{width}-{tokens}-{value}"), config, 1e5, tokens))
    return points


def test_a_plan_with_two_runs_at_one_place_is_refused_before_training():
    assert Ablation().check_plan(planned()) == []
    with pytest.raises(ValueError, match=r"z_loss, width 32, .*objective\.z_loss \(0\.0001, 0\.001\)"):
        Ablation().check_plan(planned(z_loss=[1e-4, 1e-3]))
