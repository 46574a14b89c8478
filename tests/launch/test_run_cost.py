"""The cost of one run: its speed from a measured run, its shortened config, and its share of a core."""

import pytest
import torch
from fake_run import fake_run
from omegaconf import DictConfig

from kleiber.config.errors import ConfigError
from kleiber.config.targets import build
from kleiber.launch import run_cost
from kleiber.launch.run_cost import (
    CORE_FILE,
    EVALUATED_TOKENS,
    MAX_STEPS,
    MIN_STEPS,
    Models,
    StageCost,
    UnknownSpeed,
    compute_speed,
    core_share,
    count_costs,
    measure,
    shorten_config,
    stage_key,
)
from kleiber.models.counting import Parameters
from kleiber.records.catalog import read_run
from kleiber.records.folder import read_config
from kleiber.runs.run import plan_stages

TREE, CHAIN = {"stages": None}, {"stages": {"_target_": "kleiber.runs.Chain", "chain": {"a": {}, "b": {}}}}


def stage_cost(name: str = "main", steps: int = 11, flops_per_token: float = 50.0) -> StageCost:
    return StageCost(name, Parameters(1, 1, 1, 0, 1), steps, 100, flops_per_token, 200.0, 1100, True, True)


def test_seconds_of_a_measured_run_are_divided_into_steps_evaluation_and_the_rest():
    """11 s of steps, 1 s of evaluation and 3 s once, of a process that had half of a core."""
    record = {"tokens_per_s": 100.0, "evaluation_seconds": 1.0, "peak_memory_bytes": 7}
    speed = compute_speed(TREE, [record], [stage_cost()], wall=11 + 1 + 3, share=0.5)
    assert speed.step == {"": pytest.approx(0.5)} and speed.flops_per_step == {"": 5000.0}
    assert speed.once == pytest.approx(1.5)
    assert speed.evaluation == pytest.approx(0.5), "a scored token takes half the time of a trained one"


def test_stages_of_a_tree_share_a_speed_and_those_of_a_chain_do_not():
    assert stage_key(TREE, "a") == stage_key(TREE, "b")
    assert stage_key(CHAIN, "a") != stage_key(CHAIN, "b")


def test_a_stage_of_one_step_cannot_be_measured():
    record = {"tokens_per_s": 100.0, "evaluation_seconds": 1.0, "peak_memory_bytes": 7}
    with pytest.raises(UnknownSpeed):
        compute_speed(TREE, [record], [stage_cost(steps=1)], wall=2.0)


CONFIG = {
    "trainer": {"_target_": "kleiber.training.FSDP", "devices": 2, "max_steps": None, "rank_timeout": 9.0},
    "batch": {"tokens": "1K"}, "eval": {"tokens": "1M"}, "study": {}, "design": None,
    "callbacks": {"log": {}, "progress": {}, "checkpoints": {"keep": 1, "sharded": True}},
}  # fmt: skip


@pytest.mark.parametrize(("flops_per_token", "steps"), [(1.0, MAX_STEPS), (1e7, 20), (1e12, MIN_STEPS)])
def test_a_run_is_shortened_to_a_rank_and_the_more_steps_the_cheaper_they_are(tmp_path, flops_per_token, steps):
    short = shorten_config(CONFIG, [stage_cost(flops_per_token=flops_per_token)], tmp_path / "short")
    assert short["trainer"] == {"_target_": "kleiber.training.Local", "devices": 1, "max_steps": steps}
    assert (short["batch"]["tokens"], short["eval"]["tokens"]) == (500, EVALUATED_TOKENS)
    assert short["root"] == str(tmp_path) and short["study"] is None
    assert short["callbacks"]["log"] == {} and short["callbacks"]["progress"] is None
    assert short["callbacks"]["checkpoints"] == {"keep": 1}
    assert CONFIG["trainer"]["devices"] == 2, "the config itself does not change"


def test_the_share_of_a_core_is_cpu_time_over_wall_time(tmp_path):
    assert torch.get_num_threads() == 1
    (tmp_path / CORE_FILE).write_text("1.0 2.0\n2.0 4.0\n")
    assert core_share(tmp_path, {"trainer": {}}) == 0.5
    (tmp_path / CORE_FILE).write_text("3.0 2.0\n")
    assert core_share(tmp_path, {"trainer": {}}) == 1.0
    assert core_share(tmp_path / "missing", {"trainer": {"accelerator": "gpu"}}) == 1.0


@pytest.mark.slow
def test_counts_equal_the_summary_of_the_run_and_its_speed_is_measured(launch, tmp_path):
    run = launch("trainer.max_steps=4", "callbacks.samples=null", "eval.every_steps=0")
    config = read_config(run)
    hardware, models = build(DictConfig(config["trainer"])), Models()
    (cost,) = count_costs(plan_stages(config, hardware, models), hardware, models)
    (stage,) = read_run(run).stages
    assert (cost.parameters.total, cost.total) == (stage["params"]["total"], stage["tokens"])
    assert cost.flops == pytest.approx(stage["flops"]["model"])
    (validation,) = plan_stages(config, hardware)[0].plan.corpus.validation.values()
    limit = config["eval"]["tokens"]
    assert cost.evaluated == validation.first(limit).num_tokens, "scored once, at the end"
    speed = measure(shorten_config(config, [cost], tmp_path / "short"), [cost], tmp_path / "short")
    assert speed.flops_per_step == {"": cost.flops_per_step}
    assert speed.step[""] > 0 and speed.memory_bytes > 2**27


@pytest.mark.parametrize(
    ("status", "error", "devices", "raised"),
    [
        ("failed", "KeyError: 'loss'", 1, ConfigError),
        ("failed", "MemoryError: out of memory with micro-batches of 1 rows", 1, ConfigError),
        ("failed", "MemoryError: out of memory with micro-batches of 1 rows", 2, UnknownSpeed),
        ("diverged", "step 3: the loss is not finite", 1, UnknownSpeed),
    ],
)
def test_a_run_that_fails_in_its_first_steps_fails_the_dry_run_with_its_reason(
    tmp_path, monkeypatch, status, error, devices, raised
):
    def fail(config, folder):
        fake_run(folder, config={"model": {}}, status=status, error=error)
        return 1

    monkeypatch.setattr(run_cost, "train", fail)
    with pytest.raises(raised) as caught:
        measure({}, [], tmp_path / "run", devices)
    assert error in str(caught.value) or devices > 1
