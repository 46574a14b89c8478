"""The planned memory of a step: its parts follow from the sizes, and recorded plans equal what real steps allocate."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from small_run import REPOSITORY, TINY

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.targets import build
from kleiber.nn import loss
from kleiber.runs.inherit import complete_config
from kleiber.runs.memory_plan import MemoryPlan, plan_memory
from kleiber.runs.run import plan_stages

RECORD = REPOSITORY / "benchmarks" / "results" / "memory_plan.json"
SIZE = ["model.width=64", "model.depth=3", "model.context=64", "batch.tokens=1024", "batch.micro=8"]


@cache
def plan(*overrides: str, device: str = "cpu") -> MemoryPlan:
    config = complete_config(resolve_config(Composer().compose([*TINY, *SIZE, *overrides]))[0], [*TINY, *overrides])
    hardware = build(DictConfig(config)["trainer"])
    stage = plan_stages(config, hardware)[0]
    planned = plan_memory(stage.config, stage.plan, hardware, device)
    assert isinstance(planned, MemoryPlan), planned
    return planned


@pytest.mark.slow
def test_weights_gradients_and_optimizer_state_have_the_bytes_of_the_parameters(cache_dir):
    planned = plan("batch.micro=2")
    weights = planned.parts["weights"]
    assert planned.parts["optimizer"] == pytest.approx(2 * weights, rel=0.1), "the tables of rotations are weights"
    assert planned.parts["gradients"] == pytest.approx(weights, rel=0.1), "of the micro-batch before"
    assert plan("optimizer=sgd", "adapter=lora").parts["optimizer"] < weights / 2


@pytest.mark.slow
def test_a_context_as_long_as_the_vocabulary_makes_no_logits_of_activations(cache_dir):
    equal, shorter = (
        plan(f"model.context={context}", f"batch.tokens={4 * context}", "batch.micro=2").parts for context in (272, 264)
    )
    assert equal["logits"] < 0.01 * equal["activations"]
    assert equal["activations"] == pytest.approx(shorter["activations"], rel=0.1)


@pytest.mark.slow
def test_activations_grow_with_rows_and_shrink_with_checkpoints_and_bf16(cache_dir):
    whole, part = plan(), plan("batch.micro=2")
    assert part.parts["activations"] < 0.4 * whole.parts["activations"]
    blocks, selective = (plan(f"trainer.checkpoint_activations={kind}") for kind in ("true", "selective"))
    assert blocks.total < 0.9 * selective.total < 0.8 * whole.total
    in_bf16 = plan("trainer.precision=bf16")
    assert in_bf16.parts["activations"] < 0.85 * whole.parts["activations"]
    assert "copies" not in whole.parts
    assert in_bf16.parts["copies"] == pytest.approx(whole.parts["weights"] / 2, rel=0.2)


@pytest.mark.slow
def test_a_sharding_trainer_divides_everything_but_activations_and_gathers_blocks(cache_dir):
    alone, shared = plan("batch.micro=2"), plan("trainer=fsdp", "trainer.devices=4", "batch.micro=2")
    for part in ("weights", "optimizer"):
        assert shared.parts[part] == pytest.approx(alone.parts[part] / 4, rel=0.1)
    assert 0 < shared.parts["gathered"] < 2 * alone.parts["weights"]
    assert shared.parts["gradients"] == pytest.approx(alone.parts["gradients"]), "whole before the last micro-batch"


@pytest.mark.slow
def test_a_sharding_trainer_gathers_matrices_of_blocks_in_bf16_in_place_of_copies(cache_dir):
    sizes = ("trainer=fsdp", "trainer.devices=4", "model.depth=6", "batch.micro=4")
    full, half = plan(*sizes), plan(*sizes, "trainer.precision=bf16")
    weights = plan("model.depth=6").parts["weights"]
    assert half.parts["copies"] < 0.15 * weights, "of tables of rotations and of gains"
    assert half.parts["gathered"] < 0.8 * full.parts["gathered"]
    assert plan("model.depth=6", "trainer.precision=bf16").parts["copies"] > 0.4 * weights, "2 bytes a parameter"


@pytest.mark.slow
def test_experts_alone_are_divided_by_expert_parallelism(cache_dir):
    mixture = ["model=moe", *SIZE, "model.mlp.num_experts=8"]
    alone, divided = plan(*mixture), plan(*mixture, "trainer=expert", "trainer.devices=8")
    assert 0.125 < divided.parts["weights"] / alone.parts["weights"] < 0.5


def test_chunks_of_the_loss_suit_the_planned_device():
    weight = torch.empty(2**18, 1)
    token = loss.PLANNED.set("gpu")
    assert loss.chunk_rows(weight) == 1024
    loss.PLANNED.reset(token)
    assert loss.chunk_rows(weight) == loss.CPU_ROWS


@pytest.mark.slow
def test_a_mixture_whose_sizes_depend_on_values_is_planned(cache_dir):
    choice = ["model/router=expert_choice", "model.mlp.router.acknowledge_leak=true"]
    assert plan("model=moe", *SIZE, *choice).parts["activations"] > plan().parts["activations"]


def test_the_recorded_plans_are_within_ten_percent_of_the_measured_peaks():
    rows = json.loads(Path(RECORD).read_text())
    assert len(rows) >= 12
    for name, row in rows.items():
        assert 0.9 <= row["planned"] / row["measured"] <= 1.1, name
