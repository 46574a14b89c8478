"""Arms: budgets, best rates, tuning, expert loads, and why runs decide nothing."""

import json
import math
from dataclasses import replace

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import (
    Arm,
    arm_from_rows,
    arm_name,
    arms_in_order,
    evenly_spaced,
    expert_loads,
    leaf_rows,
    not_ready,
    planned_arms,
    planned_looks,
    read_ladders,
    uneven,
)
from kleiber.studies.compare.costs import LATENCY

from ..arm_runs import LRS, TOKENS, write

STUDY = {"_target_": "kleiber.studies.Compare"}


def ladders_of(folder, measure="loss"):
    return read_ladders(read_runs(folder), measure)


def arm(name, lrs):
    return Arm(name, {lr: {0: 3.0} for lr in lrs}, lrs[0], "", {})


@pytest.mark.slow
def test_an_arm_is_tuned_with_five_rates_three_seeds_and_its_best_inside(tmp_path):
    write(tmp_path, STUDY, "good", 3.0)
    write(tmp_path, STUDY, "edge", 3.0, best=0.08)
    write(tmp_path, STUDY, "few", 3.0, lrs=LRS[1:4])
    write(tmp_path, STUDY, "alone", 3.0, seeds=1)
    arms = {name: ladder[1] for name, ladder in ladders_of(tmp_path).items()}
    good = arms["good"]
    assert (good.untuned_because, good.best_lr, good.facts["tokens"]) == ("", 0.02, 4e6)
    assert good.mean == pytest.approx(3 + 0.01 / 3) and good.grid == LRS
    assert f"{LRS[-1]:g}" in arms["edge"].untuned_because and arms["edge"].best_lr == LRS[-1]
    assert "3 learning rates" in arms["few"].untuned_because and "1 seed " in arms["alone"].untuned_because


def test_a_rate_that_diverged_cannot_be_the_best(tmp_path):
    write(tmp_path, STUDY, "a", 3.0, lrs=LRS[:3])
    write(tmp_path, STUDY, "a", 3.0, lrs=LRS[3:], status="diverged")
    write(tmp_path, STUDY, "b", 3.0)
    arm = ladders_of(tmp_path)["a"][0]
    assert arm.best_lr == 0.02 and arm.untuned_because == "" and math.isinf(arm.values_by_rate[0.04][0])


@pytest.mark.parametrize("measure", ["loss", "val/x/accuracy"])
def test_where_a_seed_diverged_at_every_rate_the_best_has_the_most_others_and_decides_nothing(measure):
    """Of five rates, one seed diverged at .02 and .04, and two at the others."""
    rows = [
        {"lr": lr, "seed": seed, "status": "finished", measure: 3.0 if lr == 0.02 else 2.0}
        for lr in LRS
        for seed in range(1 if lr in (0.02, 0.04) else 2, 3)
    ]
    rows += [{"lr": lr, "seed": seed, "status": "diverged"} for lr in LRS for seed in range(2)]
    arm = arm_from_rows("a", rows, measure, higher_is_better=measure != "loss")
    assert arm.best_lr == (0.04 if measure == "loss" else 0.02)
    assert arm.untuned_because == f"1 of 3 seeds diverged at the best learning rate {arm.best_lr:g}"


def test_a_rate_that_not_every_seed_has_run_is_no_neighbour_of_the_best(tmp_path):
    write(tmp_path, STUDY, "a", 3.0)
    write(tmp_path, STUDY, "b", 3.0)
    for lr in LRS[3:]:
        (tmp_path / f"a-lr{lr:g}-seed2/summary.json").unlink()
    arm = ladders_of(tmp_path)["a"][0]
    assert arm.best_lr == 0.02 and "3 learning rates" in arm.untuned_because and arm.grid == LRS[:3]


def test_an_arm_has_every_budget_and_its_best_rate_at_each(tmp_path):
    write(tmp_path, STUDY, "a", 3.0)
    write(tmp_path, STUDY, "b", 2.9, best=0.01)
    ladders = ladders_of(tmp_path)
    assert [arm.facts["tokens"] for arm in ladders["a"]] == list(TOKENS)
    assert {arm.best_lr for arm in ladders["b"]} == {0.01}


def with_accuracy(folder):
    runs = read_runs(folder)
    for run in runs:
        for stage in run.stages:
            if "val/docs/loss" in stage.get("metrics", {}):
                stage["metrics"]["val/docs/accuracy"] = 1 / stage["metrics"]["val/docs/loss"]
    return runs


def test_where_higher_is_better_the_best_rate_has_the_highest_mean(tmp_path):
    for name in "ab":
        write(tmp_path, STUDY, name, 3.0)
    ladders = read_ladders(with_accuracy(tmp_path), "val/docs/accuracy", higher_is_better=True)
    assert ladders["a"][-1].best_lr == 0.02 and 0 < ladders["a"][-1].mean < 1


def test_every_measure_is_read_at_the_rate_at_which_the_arm_is_best(tmp_path):
    for name in "ab":
        write(tmp_path, STUDY, name, 3.0)
    arm = read_ladders(with_accuracy(tmp_path), "loss")["a"][1]
    tilted = {
        lr: {seed: loss + 0.02 * math.log2(lr / 0.02) for seed, loss in by_seed.items()}
        for lr, by_seed in arm.values_by_rate.items()
    }
    arm = replace(arm, values_by_rate=tilted)
    shift = arm.optimum.value - arm.mean
    assert arm.optimum.fitted and shift < -1e-4
    assert arm.values("loss") == arm.best_values
    assert arm.values("loss", vertex=True) == pytest.approx(
        {seed: loss + shift for seed, loss in arm.best_values.items()}
    )
    assert [*arm.cells("loss")] == [arm.values_by_rate[lr] for lr in arm.grid[1:4]]
    assert arm.cells("moe/dead") == [arm.values("moe/dead")] and arm.cells("nothing") == []
    assert arm.values("val/docs/accuracy") == pytest.approx({seed: 1 / loss for seed, loss in arm.best_values.items()})
    assert arm.values("moe/dead") == {0: 2.0, 1: 2.0, 2: 2.0} and arm.values("nothing") == {}
    assert arm.row()["moe/max_violation"] == pytest.approx(0.4)


def test_a_measure_that_no_run_has_is_refused_with_those_there_are(tmp_path):
    write(tmp_path, STUDY, "a", 3.0)
    with pytest.raises(ValueError, match=r"val/x/acc.*val/docs/loss"):
        ladders_of(tmp_path, "val/x/acc")


def test_runs_of_no_arm_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{seed: 0}")
    with pytest.raises(ValueError, match="arm"):
        leaf_rows(read_runs(tmp_path))


def test_loads_are_those_of_the_last_tenth_of_the_stage_and_the_last_count_of_the_dead():
    logged = [
        {"step": step, "stage": stage, "moe/load_entropy/0": 0.5, "moe/load_entropy/1": step / 40,
         "moe/max_violation/0": float(step)}
        for stage in ("trunk", "8M") for step in range(20)
    ]  # fmt: skip
    logged[3] |= {"moe/dead/0": 7.0}
    logged[25] |= {"moe/dead/0": 1.0, "moe/dead/1": 2.0}
    assert expert_loads(logged, "8M") == pytest.approx(
        {"moe/max_violation": 18.5, "moe/load_entropy": (0.5 + 18.5 / 40) / 2, "moe/dead": 1.5}
    )
    assert expert_loads(logged, "trunk")["moe/dead"] == 7.0 and expert_loads([{"step": 1}], None) == {}
    assert "moe/max_violation" not in expert_loads(
        [{"step": 1, "moe/load_entropy/0": 1.0, "moe/max_violation/0": math.nan}], None
    )


@pytest.mark.slow
def test_the_fastest_run_tells_the_time_for_other_work_only_slows(tmp_path):
    for name in "ab":
        write(tmp_path, STUDY, name, 3.0, latency=100.0)
    for path in tmp_path.glob("a-lr*-seed[12]/summary.json"):
        content = json.loads(path.read_text())
        for stage in content["stages"][1:]:
            stage["tokens_per_s"] = 10.0
        path.write_text(json.dumps(content))
    arm = ladders_of(tmp_path)["a"][0]
    assert arm.facts["speed"] == 1e4 and arm.facts["train_s"] == 200.0
    assert arm.facts[f"{LATENCY}decode_tokens_per_s/1"] == 100.0 and arm.facts[f"{LATENCY}decode_p50_ms/1"] == 10.0
    row = arm.row()
    assert row["decode tokens/s"] == 100.0 and not any(name.startswith(LATENCY) for name in row)


def test_a_diverged_run_has_the_worst_value_of_any_measure():
    rows = [
        {"lr": 0.1, "seed": 0, "status": "diverged"},
        {"lr": 0.2, "seed": 0, "status": "finished", "val/x/acc": 0.5},
    ]
    assert arm_from_rows("a", rows, "val/x/acc", higher_is_better=True).values_by_rate == {
        0.1: {0: -math.inf},
        0.2: {0: 0.5},
    }


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
    assert not not_ready(read_runs(tmp_path), 1).why
    write(tmp_path, STUDY, "b", 3.0, seeds=1, status="running")
    assert "5 of 10" in not_ready(read_runs(tmp_path), 1).why


def plan(folder, arms=("a",), **designs):
    """Plans the runs of each arm by the design of its name; `designs` are numbers of seeds by seed."""
    for config in folder.glob("*/config.yaml"):
        content = yaml.safe_load(config.read_text())
        arm = content["study"]["arm"]
        design = {"seeds": designs[arm](content["seed"]), "arms": {**{name: {} for name in arms}, "y": None}}
        config.write_text(
            yaml.safe_dump({**content, "study": {"arm": arm, "seeds": None}, "design": design}, sort_keys=False)
        )
    return read_runs(folder)


@pytest.mark.parametrize(("first", "looks"), [(3, 2), (2, 1), (1, 1)])
def test_a_plan_with_another_number_of_seeds_is_a_look_unless_it_had_too_few_to_decide(first, looks, tmp_path):
    write(tmp_path, STUDY, "a", 3.0, seeds=5)
    runs = plan(tmp_path, a=lambda seed: first if seed < 2 else 5)
    early = not_ready(runs, 1)
    assert bool(early.why) is (looks > 1) and not not_ready(runs, 2).why
    assert "study.looks=2" in early.advice if looks > 1 else not early.advice


@pytest.mark.slow
def test_arms_of_plans_with_other_numbers_of_seeds_were_looked_at_once(tmp_path):
    write(tmp_path, STUDY, "a", 3.0, seeds=5)
    write(tmp_path, STUDY, "b", 3.0, seeds=3)
    runs = plan(tmp_path, a=lambda seed: 5, b=lambda seed: 3)
    assert not not_ready(runs, 1).why


@pytest.mark.slow
def test_a_part_of_the_planned_seeds_decides_nothing(tmp_path):
    """study.max_cells leaves no folder of the runs beyond it."""
    write(tmp_path, STUDY, "a", 3.0, seeds=5)
    write(tmp_path, STUDY, "b", 3.0, seeds=3)
    runs = plan(tmp_path, a=lambda seed: 5, b=lambda seed: 5)
    assert not_ready(runs, 1).why == '3 of the 5 planned seeds of the arm "b" were run'
    assert not not_ready(runs, 1, lambda run: f"seed={run.config['seed'] % 2}").why, (
        "a key that the design did not name"
    )
    assert planned_looks(runs, arm_name) == 1


def test_a_design_with_seeds_for_each_width_is_read(tmp_path):
    write(tmp_path, STUDY, "a", 3.0, seeds=3)
    runs = plan(tmp_path, a=lambda seed: [3, 2])
    assert not not_ready(runs, 1).why and not not_ready(runs, 1, lambda run: f"lr={run.config['optimizer']['lr']}").why


def test_arms_are_in_the_order_of_the_design_also_those_without_a_finished_run(tmp_path):
    write(tmp_path, STUDY, "b", 3.0, seeds=1)
    write(tmp_path, STUDY, "c", 3.0, seeds=1)
    write(tmp_path, STUDY, "z", 3.0, seeds=1, status="diverged")
    runs = plan(tmp_path, "zcxb", **dict.fromkeys("bcz", lambda seed: 1))
    assert planned_arms([run.config for run in runs]) == arms_in_order(runs) == [*"zcxb"]
    assert [*read_ladders(runs)] == ["c", "b"]
    assert arms_in_order(runs, lambda run: f"arm={run.config['study']['arm']}") == ["arm=b", "arm=c", "arm=z"]
