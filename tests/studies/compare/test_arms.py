"""Figures of arms: the figures that are named can be drawn, and arms without data have none."""

import math

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare import arms
from kleiber.studies.compare.arms import Arm, paired, read

from ..arm_runs import LRS, write

ARM = Arm("mixture", {0.01: {0: 3.0, 1: 3.1}}, 0.01, "", {"params": 5.0})


def test_what_has_no_data_has_no_figure():
    assert arms.differences_chart([], "title") == {}
    assert arms.against_loss("sizes", [], "params", "title") == {}


@pytest.mark.parametrize("name", ["differences", "arms", "tuning", "sizes"])
def test_a_figure_shows_the_arms_it_was_asked_for(name):
    gap = {"what": "mixture - dense", "value": 0.1, "lo": 0.0, "hi": 0.2}
    built = {
        **arms.differences_chart([gap], "title"),
        **arms.each_arm({"mixture": ARM}),
        **arms.against_loss("sizes", [ARM.row()], "params", "title"),
    }
    assert list(built) == ["differences", "arms", "tuning", "sizes"]
    assert '"mixture' in built[name]().to_json()


SPARSITY = {"_target_": "kleiber.studies.Sparsity", "sizes": ["dense", "large"]}


def test_an_arm_is_tuned_with_five_rates_three_seeds_and_its_best_inside(tmp_path):
    write(tmp_path, SPARSITY, "good", 3.0)
    write(tmp_path, SPARSITY, "edge", 3.0, best=0.08)
    write(tmp_path, SPARSITY, "few", 3.0, lrs=LRS[1:4])
    write(tmp_path, SPARSITY, "alone", 3.0, seeds=1)
    arms = read(read_runs(tmp_path), 4e6)
    assert (
        arms["good"].wrong == "" and arms["good"].best_lr == 0.02 and arms["good"].mean == pytest.approx(3 + 0.01 / 3)
    )
    assert (
        "largest" in arms["edge"].wrong and "3 learning rates" in arms["few"].wrong and "1 seeds" in arms["alone"].wrong
    )


def test_a_rate_that_diverged_cannot_be_the_best(tmp_path):
    write(tmp_path, SPARSITY, "a", 3.0, lrs=LRS[:3])
    write(tmp_path, SPARSITY, "a", 3.0, lrs=LRS[3:], status="diverged")
    arm = read(read_runs(tmp_path), 4e6)["a"]
    assert arm.best_lr == 0.02 and arm.wrong == "" and math.isinf(arm.losses[0.04][0])


def test_a_rate_that_not_every_seed_has_run_is_no_neighbour_of_the_best(tmp_path):
    write(tmp_path, SPARSITY, "a", 3.0)
    for lr in LRS[3:]:
        (tmp_path / f"a-lr{lr:g}-seed2/summary.json").unlink()
    arm = read(read_runs(tmp_path), 4e6)["a"]
    assert arm.best_lr == 0.02 and "3 learning rates" in arm.wrong


def test_pairing_takes_out_what_seeds_share():
    ours, theirs = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.1, 2: 3.13}
    gap = paired(ours, theirs)
    assert gap["value"] == pytest.approx(-0.11) and gap["better on"] == 3
    # Student's interval at 90 % with two degrees of freedom: 2.92 standard errors.
    assert gap["hi"] - gap["value"] == pytest.approx(2.919986 * 0.01, rel=1e-3)
    assert paired({0: 1.0}, theirs)["lo"] is None
