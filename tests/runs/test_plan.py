"""batch.micro=auto: the estimated memory of activations, and the micro-batch that follows from it."""

import os
from functools import partial

import pytest
import torch
from omegaconf import DictConfig
from shared_ranks import fork_ranks
from small_run import TINY
from torch.profiler import profile

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.targets import build
from kleiber.launch.run_cost import Models, count_costs
from kleiber.models.counting import training_flops
from kleiber.models.hf import HFModel
from kleiber.models.transformer import Transformer
from kleiber.nn.mlp import GELU
from kleiber.nn.moe import interleaved_moe
from kleiber.runs import plan
from kleiber.runs.inherit import complete_config
from kleiber.runs.run import plan_stages
from kleiber.training.trainer import DDP, Local
from kleiber.types.batch import Batch

CASES = {"gpt": {}, "gelu": {"mlp": GELU}, "moe": {"mlp": partial(interleaved_moe, num_experts=4, k=2)}}


def held_bytes(model: Transformer, rows: int) -> int:
    """Bytes that a forward pass has allocated and not freed, measured by PyTorch's profiler."""
    with profile(profile_memory=True) as watched:
        output = model(Batch(torch.zeros(rows, 64, dtype=torch.long)))
    assert output.hidden.requires_grad
    return sum(event.self_cpu_memory_usage for event in watched.key_averages())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_estimated_activation_bytes_equal_those_that_pytorch_allocates(case):
    model = Transformer(96, width=64, context=64, depth=3, **CASES[case])
    held_bytes(model, 1)
    measured = held_bytes(model, 6) - held_bytes(model, 5)
    assert plan.activation_bytes(model, 64) == pytest.approx(measured, rel=0.15)


def test_micro_batches_fill_half_of_the_free_memory_and_more_with_checkpoints(monkeypatch):
    model = Transformer(96, width=64, context=64, depth=4)
    row = plan.activation_bytes(model, 64)
    monkeypatch.setattr(plan, "free_memory_bytes", lambda device: 2 * 10 * row)
    plain, light, selective = (Local(checkpoint_activations=on) for on in (False, True, "selective"))
    assert plan.choose_micro_batch("auto", 1000, 64, model, plain) == 10
    assert plan.choose_micro_batch("auto", 7, 64, model, plain) == 7
    most = plan.choose_micro_batch("auto", 1000, 64, model, light)
    assert most > 20 > plan.choose_micro_batch("auto", 1000, 64, model, selective) > 10
    assert 10 < plan.choose_micro_batch("auto", 1000, 64, model, Local(precision="bf16")) < 20
    assert plan.choose_micro_batch(3, 1000, 64, model, plain) == 3


def test_all_ranks_have_the_micro_batch_of_the_rank_with_the_least_memory(tmp_path, monkeypatch):
    """With different numbers of micro-batches they would wait for each other in the passes of a sharded model."""
    model = Transformer(96, width=64, context=64, depth=1)
    monkeypatch.setattr(plan, "activation_bytes", lambda *_: 100)

    def write_rows(rank: int) -> int:
        monkeypatch.setattr(plan, "free_memory_bytes", lambda device: (4450, 4250)[rank])
        rows = plan.choose_micro_batch("auto", 64, 64, model, DDP(devices=2))
        (tmp_path / os.environ["RANK"]).write_text(str(rows))
        return 0

    assert fork_ranks(2, write_rows) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["21", "21"]


def test_on_a_cpu_padded_rows_are_split_into_eight_parts(monkeypatch):
    model = Transformer(96, width=64, context=64, depth=1)
    monkeypatch.setattr(plan, "free_memory_bytes", lambda device: 1e12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu, gpu = Local(accelerator="cpu"), Local(accelerator="gpu")
    sizes = [plan.choose_micro_batch("auto", rows, 64, model, cpu, padded=True) for rows in (5, 64, 200)]
    assert sizes == [5, 8, 25]
    assert plan.choose_micro_batch("auto", 64, 64, model, cpu) == 64
    assert plan.choose_micro_batch("auto", 64, 64, model, gpu, padded=True) == 64
    assert plan.choose_micro_batch(64, 64, 64, model, cpu, padded=True) == 64, "as asked"


def test_a_budget_of_flops_counts_what_a_stage_with_an_adapter_trains(cache_dir):
    chain = "{one:{budget:{steps:1}},two:{budget:{flops:1e8}}}"
    options = ["stages=chain", f"stages.chain={chain}", "adapter=lora", "trainer.max_steps=null", "model.width=64"]
    config = complete_config(resolve_config(Composer().compose([*TINY, *options]))[0], options)
    hardware = build(config["trainer"])
    first, second = plan_stages(config, hardware)
    flops = second.plan.flops_per_token * second.plan.tokens
    assert second.plan.flops_per_token < 0.9 * first.plan.flops_per_token
    assert flops == pytest.approx(1e8, abs=0.5 * second.plan.flops_per_token * second.plan.batch_tokens)
    (_, cost) = count_costs([first, second], hardware, Models())
    assert cost.flops_per_token == second.plan.flops_per_token, "as the record will have it"
    assert not any(parameter.is_meta for parameter in second.plan.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "freeze"])
def test_the_planned_flops_of_a_hugging_face_model_are_those_of_what_its_adapter_trains(adapter):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 96}
    model = HFModel(96, "llama", "random", sizes, context=64)
    options = [f"adapter={adapter}"] + ["adapter.train=[layers.1]"] * (adapter == "freeze")
    config = DictConfig(resolve_config(Composer().compose(options))[0])
    planned, full = training_flops(plan.with_adapter(config, model), 64), training_flops(model, 64)
    build(config.adapter).apply(model, 0)
    assert planned == training_flops(model, 64) < full


def test_every_rank_gets_as_many_samples_as_another():
    assert plan.batch_samples("256", 64, 2) == 4
    for tokens, near in ((192, 256), (64, 128), (100, 128), (10, 128)):
        with pytest.raises(ValueError, match=rf"batch.tokens={tokens} .*multiple of 128: .*batch.tokens={near}$"):
            plan.batch_samples(tokens, 64, 2)


@pytest.mark.parametrize(
    ("setting", "micro", "part", "expected"),
    [("auto", 64, 64, 64), ("auto", 8, 8, 64), ("auto", 8, 64, 16), (1, 1, 64, 2), (64, 64, 64, 64), (16, 16, 8, 32)],
)
def test_a_pass_of_the_validation_has_two_micro_batches_where_they_are_limited(setting, micro, part, expected):
    assert plan.scored_rows(setting, micro, 64, part) == expected
