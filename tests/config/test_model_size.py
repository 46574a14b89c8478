"""Formulas of model sizes against real models: parameters exactly, FLOPs up to rounding; what is too large."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from kleiber.config import model_size
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.model_size import (
    BYTES_VOCABULARY,
    available_cores,
    cached_values,
    check_memory,
    machine_memory,
    size,
    training_memory,
    vocabulary_of,
)
from kleiber.config.targets import build
from kleiber.models.counting import count_parameters, training_flops
from kleiber.runs.plan import activation_bytes
from kleiber.types import Json
from kleiber.types.batch import Batch

CHOICES = [
    [], ["model.depth=3", "model.width=96", "model.num_heads=6"], ["model/mlp=gelu"], ["model/attention=none"],
    ["model/mlp=relu2", "model.norm=sandwich"], ["model.norm=post"],
    ["model.norm_type=layernorm", "model.norm=sandwich", "model.future=1"],
    ["model/attention=window"], ["model.tied=false"], ["model.num_heads=4", "model.num_kv_heads=2"],
    ["model=bert", "objective=mlm"], ["model=moe"], ["model=moe", "model.mlp.every=2", "model.mlp.num_shared=1"],
    ["model=moe", "model.depth=3", "model.mlp.dense_first=1", "model.mlp.granularity=2"],
    ["model=moe", "model.mlp.hidden=48", "model.mlp.granularity=3", "model.mlp.num_shared=2"],
    *(["model=moe", f"model/router={router}"] for router in ("hash", "random", "noisy")),
    ["model=moe", "model.mlp.capacity_factor=1.25"], ["model.qk_norm=false"],
    ["model=bert", "objective=mlm", "model/attention=window"], ["model=lstm"],
    ["model=lstm", "model.depth=3", "model.width=40", "model.hidden=24", "model.tied=false"],
]  # fmt: skip
COMPOSER = Composer()


def composed(*overrides: str) -> Json:
    return resolve_config(COMPOSER.compose(list(overrides)))[0]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_a_size_is_that_of_the_model(choice):
    node = composed("model.context=128", *choice)["model"]
    model = build(OmegaConf.create(node), vocab_size=BYTES_VOCABULARY)
    real, expected = count_parameters(model), size(node, BYTES_VOCABULARY)
    assert (expected.total, expected.active, expected.non_embedding) == (real.total, real.active, real.non_embedding)
    assert expected.flops_per_token == pytest.approx(training_flops(model, 128), rel=1e-12)


def test_decoding_keeps_what_the_caches_of_the_model_hold():
    for choice in ([], ["model.num_heads=4", "model.num_kv_heads=2"], ["model=lstm"]):
        node = composed("model.context=16", *choice)["model"]
        model = build(OmegaConf.create(node), vocab_size=BYTES_VOCABULARY)
        caches = model.new_caches(16)
        model(Batch(torch.zeros(1, 16, dtype=torch.long)), caches)
        assert cached_values(node) == sum(tensor.numel() for tensor in caches.tensors())


WRAPPED = {
    "llama": "{hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64}",
    "gpt2": "{n_embd: 32, n_head: 4, n_inner: 64, n_positions: 16}",
}


@pytest.mark.parametrize("path", WRAPPED)
def test_decoding_of_a_wrapped_model_keeps_what_its_cache_holds(path):
    options = [f"model.path={path}", "model.weights=random", "model.depth=2", f"model.config={WRAPPED[path]}"]
    node = composed("model=hf", "model.context=16", *options)["model"]
    inner = build(OmegaConf.create(node), vocab_size=BYTES_VOCABULARY).inner
    cache = inner(torch.zeros(1, 16, dtype=torch.long), use_cache=True).past_key_values
    assert cached_values(node) == sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert cached_values({**node, "config": {}}) is None


def test_what_has_no_formula_is_refused():
    with pytest.raises(ValueError, match=r"model\.|data\."):
        size({"mlp": {"_target_": "kleiber.nn.other.Thing"}}, 272)
    gru = {"_target_": "mylab.model.GRU", "depth": 2, "width": 64, "context": 128}
    with pytest.raises(ValueError, match=r"model=mylab\.model\.GRU has no FLOPs formula"):
        size(gru, 272)
    assert cached_values(gru) is None
    with pytest.raises(ValueError, match="tokenizer"):
        vocabulary_of({"tokenizer": "gpt2"})
    assert vocabulary_of({"tokenizer": "bpe", "vocab_size": 1000}) == 1008


HUGE = [
    ("model.depth=10000", "model.depth=10000"),
    ("model.width=1000000", "model.width=1000000"),
    ("model.context=16777216 batch.tokens=16777216", "model.context=16777216"),
    ("data.tokenizer=bpe data.vocab_size=1000000000", "data.vocab_size=1000000000"),
    ("model=moe model.mlp.num_experts=65536 model.width=4096", "model.mlp.num_experts=65536"),
    ("batch.micro=1000000 batch.tokens=256M", "batch.micro=1000000"),
    ("stages=docs_then_code stages.chain.code.batch.micro=1000000", "batch.micro=1000000"),
    ("trainer=ddp trainer.devices=4 model.width=8192 model.depth=4 dry_run=true", "model.width=8192"),
]


@pytest.mark.parametrize(("overrides", "key"), HUGE, ids=[overrides for overrides, _ in HUGE])
def test_a_run_that_this_machine_cannot_hold_is_refused_with_the_memory_and_the_keys(overrides, key, monkeypatch):
    monkeypatch.setattr(model_size, "machine_memory", lambda: 24.0 * 2**30)
    with pytest.raises(ConfigError, match=rf"{key}\b.* [0-9,]+ GiB .* 24 GiB"):
        check_memory(composed(*overrides.split()))


@pytest.mark.parametrize(
    "overrides",
    [[], ["model=moe"], ["model=bert", "objective=mlm"], ["stages=docs_then_code"], ["adapter=lora", "model.depth=12"]],
    ids=" ".join,
)
def test_a_run_of_a_gigabyte_fits(overrides, monkeypatch):
    monkeypatch.setattr(model_size, "machine_memory", lambda: 1.0 * 2**30)
    check_memory(composed(*overrides))


def test_what_has_no_formula_or_runs_elsewhere_is_not_refused(monkeypatch):
    monkeypatch.setattr(model_size, "machine_memory", lambda: 0.0)
    check_memory(composed("launcher=submitit"))
    check_memory(composed("model=hf", "model.path=gpt2"))


@pytest.mark.parametrize("overrides", [[], ["model.width=512", "model.depth=4"], ["model=moe"], ["optimizer=lion"]])
def test_the_memory_is_a_lower_bound_of_what_training_allocates(overrides):
    config = composed("model.context=128", "batch.micro=1", *overrides)
    model = build(OmegaConf.create(config["model"]), vocab_size=BYTES_VOCABULARY)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    copies = 3 if "optimizer=lion" in overrides else 4
    allocated = copies * weights + activation_bytes(model, 128) + 8 * 4096
    assert 0.6 * allocated < training_memory(config) < allocated


def test_the_memory_of_this_machine_is_that_of_its_pages():
    assert 2**28 < machine_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_cores_are_those_that_the_process_may_use_where_the_system_reports_them(monkeypatch, system):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cores() == (3 if system == "linux" else 8)
