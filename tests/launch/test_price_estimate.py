"""Estimates for planned runs: which runs are measured, and how seconds of the others follow from their speeds."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from small_run import TINY

from kleiber.config.compose import Composer, resolve_config
from kleiber.launch import price_estimate
from kleiber.launch.price_estimate import Prices, main, without_numbers
from kleiber.launch.run_cost import Speed, StageCost
from kleiber.models.counting import Parameters
from kleiber.records.folder import read_config


def test_configs_that_differ_only_in_numbers_are_alike_without_them():
    config = {"model": {"width": 32, "router": "a"}, "stages": {"branches": ["1M", 2e6]}, "on": True}
    same = {"model": {"width": None, "router": "a"}, "stages": {"branches": [3]}, "on": True}
    assert without_numbers(config) == without_numbers(same)
    assert without_numbers(config) != without_numbers({**same, "on": False})
    assert without_numbers(config) != without_numbers({**same, "model": {"width": 32, "router": "b"}})


def small_config(width: int, init: dict | None = None) -> dict:
    return {
        "model": {"_target_": "kleiber.models.Transformer", "width": width}, "optimizer": {"lr": 0.01}, "init": init,
        "stages": None, "seed": 0, "data": {"path": "x"},
    }  # fmt: skip


def stage_cost(flops_per_token: float) -> StageCost:
    return StageCost("main", Parameters(9, 7, 7, 2, 9), 10, 100, flops_per_token, 500.0, 1000, True, True)


def prices(tmp_path, widths) -> Prices:
    """Runs of these widths, whose steps cost FLOPs as the squares of the widths."""
    result = Prices({str(tmp_path / str(width)): small_config(width) for width in widths}, tmp_path / "scratch")
    result.costs = [[stage_cost(float(width**2))] for width in widths]
    return result


def test_the_largest_run_is_measured_first_then_the_smallest_and_a_middle_one(tmp_path):
    assert prices(tmp_path, [32, 128, 64, 96]).runs_to_measure() == [1, 0, 3]
    assert prices(tmp_path, [32]).runs_to_measure() == [0]


def test_counts_do_not_depend_on_seed_and_learning_rate(tmp_path):
    estimate, config = prices(tmp_path, [32]), small_config(32)
    assert estimate.count_key({**config, "seed": 3, "optimizer": {"lr": 0.5}}) == estimate.count_key(config)
    assert estimate.count_key(small_config(64)) != estimate.count_key(config)


def test_seconds_of_a_run_are_steps_evaluation_and_what_happens_once(tmp_path):
    estimate = prices(tmp_path, [32])
    assert estimate.seconds(0) == {"seconds": None, "seconds_per_token": None}, "nothing is measured"
    flops = estimate.costs[0][0].flops_per_step
    estimate.speeds[0] = Speed({"": flops}, {"": 0.2}, evaluation=0.5, once=3.0, memory_bytes=1)
    training, evaluation = 10 * 0.2, 500 * 0.5 * 0.2 / 100
    assert estimate.seconds(0)["seconds"] == pytest.approx(training + evaluation + 3.0)
    assert estimate.seconds(0)["seconds_per_token"] == pytest.approx(training / 1000)


def test_a_private_run_is_measured_although_the_time_is_over_and_has_no_other_speed(tmp_path, monkeypatch):
    """Steps of DP-SGD are slow, so the plain speed would be wrong for them; further kinds of data are not measured."""
    plain, private = small_config(32), small_config(16) | {"privacy": {"_target_": "kleiber.optimizers.DPSGD"}}
    configs = [plain, plain | {"data": {"files": "y"}}, private, private | {"data": {"files": "y"}}]
    estimate = Prices({str(tmp_path / str(number)): config for number, config in enumerate(configs)}, tmp_path / "new")
    estimate.costs = [[replace(stage_cost(float(width**2)), full_rows=False)] for width in (32, 32, 16, 16)]
    monkeypatch.setattr(price_estimate, "MEASURING_SECONDS", -1.0)
    steps = {0: 0.1, 2: 0.3}
    speed = {n: Speed({"": estimate.size(n)}, {"": step}, 0.5, 0.0, 1) for n, step in steps.items()}
    monkeypatch.setattr(estimate, "measure_run", speed.__getitem__)
    estimate.measure()
    assert estimate.speeds == speed
    assert [estimate.seconds(n)["seconds_per_token"] for n in range(4)] == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3])


def test_a_start_point_that_is_not_trained_is_replaced_by_a_folder_in_scratch(tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    runs = {str(base): small_config(32), str(tuned): small_config(32, {"path": f"{base}/main"})}
    estimate = Prices(runs, tmp_path / "scratch")
    (placeholder,) = estimate.planned
    assert placeholder.parent == tmp_path / "scratch"
    assert estimate.configs[1]["init"]["path"] == f"{placeholder}/main"


@pytest.mark.slow
def test_a_request_is_answered_with_counts_and_seconds_of_a_base_and_its_fine_tune(
    tmp_path, cache_dir, monkeypatch, capsys
):
    overrides = [*TINY, "budget.steps=3", "callbacks.samples=null", f"root={tmp_path}"]
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    config, _ = resolve_config(Composer("train").compose(overrides))
    start = {"_target_": "kleiber.runs.Checkpoint", "path": f"{base}/main"}
    request = {"runs": {str(base): config, str(tuned): {**config, "init": start}}, "describe": False}
    monkeypatch.setattr("sys.stdin", StringIO(json.dumps(request)))
    assert main() == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [cell["tokens"] for cell in answer["cells"]] == [3 * 512] * 2
    assert all(cell["seconds"] > 0 for cell in answer["cells"]) and answer["unmeasured"] is None
    assert answer["cells"][0]["params"] == answer["cells"][1]["params"] and answer["memory_bytes"] > 2**27
    assert not base.exists() and not tuned.exists()


@pytest.mark.slow
def test_a_chain_is_measured_though_its_second_stage_opens_the_first(launch, tmp_path):
    run = launch("stages=chain", "stages.chain={a: {budget: {steps: 4}}, b: {budget: {steps: 4}}}")
    prices = Prices({str(tmp_path / "planned"): read_config(run)}, tmp_path / "scratch")
    prices.count(False)
    assert prices.measure_run(0).step.keys() == {"a", "b"}


def test_text_that_a_planned_run_will_write_is_priced_as_the_real_text_beside_it(tmp_path):
    base, later, other = tmp_path / "base", tmp_path / "later", tmp_path / "other"
    real = {"_target_": "kleiber.data.Builtin"}
    runs = {
        str(base): small_config(32),
        str(later): small_config(32) | {"data": {"models": [f"{base}/main"], "data": real}},
        str(other): small_config(32) | {"data": {"models": ["/trained"], "data": real}},
    }
    estimate = Prices(runs, tmp_path / "scratch")
    assert estimate.configs[1]["data"] == real
    assert estimate.configs[2]["data"]["models"] == ["/trained"]
