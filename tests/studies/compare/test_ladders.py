"""The budgets of arms, and why runs decide nothing: unlike tuning, unfinished runs, too many looks."""

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import Arm, arm_name
from kleiber.studies.compare.ladders import evenly_spaced, not_ready, read_ladders, uneven

from ..arm_runs import LRS, TOKENS, write

STUDY = {"_target_": "kleiber.studies.Compare"}


def arm(name, lrs):
    return Arm(name, {lr: {0: 3.0} for lr in lrs}, lrs[0], "", {})


def test_an_arm_has_every_budget_and_its_best_rate_at_each(tmp_path):
    write(tmp_path, STUDY, "a", 3.0)
    write(tmp_path, STUDY, "b", 2.9, best=0.01)
    ladders = read_ladders(read_runs(tmp_path), "loss", arm_name)
    assert [arm.facts["tokens"] for arm in ladders["a"]] == list(TOKENS)
    assert {arm.best_lr for arm in ladders["b"]} == {0.01}


def test_where_higher_is_better_the_best_rate_has_the_highest_mean(tmp_path):
    for name in "ab":
        write(tmp_path, STUDY, name, 3.0)
    runs = read_runs(tmp_path)
    for run in runs:
        for stage in run.stages:
            if "val/docs/loss" in stage.get("metrics", {}):
                stage["metrics"]["val/docs/accuracy"] = 1 / stage["metrics"]["val/docs/loss"]
    ladders = read_ladders(runs, "val/docs/accuracy", arm_name)
    assert ladders["a"][-1].best_lr == 0.02 and 0 < ladders["a"][-1].mean < 1


def test_a_measure_that_no_run_has_is_refused_with_those_there_are(tmp_path):
    write(tmp_path, STUDY, "a", 3.0)
    with pytest.raises(ValueError, match=r"val/x/acc.*val/docs/loss"):
        read_ladders(read_runs(tmp_path), "val/x/acc", arm_name)


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        (LRS, LRS, True), (LRS, [lr * 10 for lr in LRS], True), (LRS, LRS[:4], False),
        (LRS, [0.001, 0.01, 0.1, 1.0, 10.0], False), (LRS, [0.005, 0.006, 0.007, 0.04, 0.08], False),
    ],
)  # fmt: skip
def test_arms_are_tuned_alike_with_as_many_rates_of_the_same_spacing(first, second, alike):
    assert (uneven((arm("a", first), arm("b", second))) == "") == alike


def test_rates_of_one_two_five_ten_are_evenly_spaced():
    assert evenly_spaced([0.001, 0.002, 0.005, 0.01]) and not evenly_spaced([0.001, 0.002, 0.02])


def test_runs_that_have_not_finished_decide_nothing(tmp_path):
    write(tmp_path, STUDY, "a", 3.0, seeds=1)
    assert not_ready(read_runs(tmp_path), 1, arm_name) == ""
    write(tmp_path, STUDY, "b", 3.0, seeds=1, status="running")
    assert "5 of 10" in not_ready(read_runs(tmp_path), 1, arm_name)


def test_every_plan_with_another_number_of_seeds_is_a_look(tmp_path):
    write(tmp_path, STUDY, "a", 3.0, seeds=3)
    for config in tmp_path.glob("*/config.yaml"):
        content = yaml.safe_load(config.read_text())
        seeds = 2 if content["seed"] < 2 else 3
        config.write_text(yaml.safe_dump({**content, "design": {"seeds": seeds}}))
    runs = read_runs(tmp_path)
    assert "2 looks" in not_ready(runs, 1, arm_name) and not_ready(runs, 2, arm_name) == ""
