"""A run opened for use has the weights it ended with, those that its checkpoint lacks included."""

from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig

from kleiber.config.compose import Composer, resolved
from kleiber.config.signatures import build
from kleiber.data.tokenizers.byte_level import Bytes
from kleiber.records.summary import write_json
from kleiber.runs.open import new_model, open_model
from kleiber.runs.start_point import Checkpoint, Upcycle
from kleiber.training import checkpoint

VOCAB = Bytes().vocab_size
DENSE = {"_target_": "kleiber.models.Transformer", "depth": 2, "width": 32, "context": 16, "tied": False}
EXPERTS = {
    "_target_": "kleiber.nn.interleaved_moe",
    "_partial_": True,
    "num_experts": 4,
    "hidden": 96,
    "num_shared": 0,
}
WRAPPED = {
    "_target_": "kleiber.models.HFModel", "path": "llama", "weights": "random", "context": 16,
    "config": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
}  # fmt: skip
DATA = {"_target_": "kleiber.data.Builtin", "tokenizer": "bytes"}
FREEZE = {"_target_": "kleiber.adapters.Freeze", "freeze": ["mlp"]}
LORA = {"_target_": "kleiber.adapters.LoRA", "rank": 2, "targets": ["attention"]}


def finished(folder: Path, model: dict, adapter: dict | None = None, seed: int = 3, init: dict | None = None) -> Path:
    """A run that ended after one step, which moved all that it trained."""
    config, _ = resolved(Composer("train").compose([]))
    config |= {"seed": seed, "model": model, "adapter": adapter, "init": init, "data": DATA}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    built = new_model(config, VOCAB)
    if init is not None:
        build(DictConfig(init)).load(built)
    if adapter is not None:
        build(DictConfig(adapter)).apply(built, seed)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    names = None if adapter is None else checkpoint.trained_names(built)
    checkpoint.save(folder / "stages/main/checkpoints", 1, built, {}, "hash", names)
    write_json(folder / "summary.json", {"stages": [{"name": "main", "status": "finished"}]})
    return folder


def other(model: dict, seed: int = 4):
    return new_model({"seed": seed, "model": model}, VOCAB)


@pytest.mark.parametrize("adapter", [FREEZE, LORA], ids=["freeze", "lora"])
@pytest.mark.parametrize("node", [DENSE, WRAPPED], ids=["own", "wrapped"])
def test_what_an_adapter_did_not_train_is_what_its_own_seed_drew(node, adapter, tmp_path):
    if node is WRAPPED and adapter is LORA:
        pytest.importorskip("peft")
    run = finished(tmp_path / "run", node, adapter)
    opened, begun = open_model(str(run)).model, other(node)
    state = torch.random.get_rng_state()
    Checkpoint(str(run)).load(begun)
    assert torch.equal(torch.random.get_rng_state(), state)
    drawn, moved = other(node, seed=3).state_dict(), opened.state_dict()
    frozen = [name for name in drawn if ".mlp." in name]
    assert frozen and all(torch.equal(moved[name], drawn[name]) for name in frozen)
    assert any(not torch.equal(moved[name], drawn[name]) for name in drawn)
    assert all(torch.equal(value, moved[name]) for name, value in begun.state_dict().items())


def test_a_mixture_made_of_a_dense_run_has_its_own_routers_and_the_dense_runs_own_base(tmp_path):
    dense = finished(tmp_path / "dense", DENSE, FREEZE)
    init = {"_target_": "kleiber.runs.Upcycle", "path": str(dense)}
    node = DENSE | {"mlp": EXPERTS}
    run = finished(tmp_path / "run", node, LORA, seed=5, init=init)
    begun = other(node)
    Checkpoint(str(run)).load(begun)
    router, embedding = "blocks.0.mlp.router.linear.weight", "embedding.weight"
    state = begun.state_dict()
    assert torch.equal(state[router], other(node, seed=5).state_dict()[router])
    assert torch.equal(state[embedding], open_model(str(dense)).model.state_dict()[embedding])
    Upcycle(str(dense)).load(first := other(node, seed=6))
    Upcycle(str(dense)).load(second := other(node, seed=6))
    old = other(DENSE, seed=3).blocks[0].mlp.gate_up.weight
    for made in (first, second):
        assert torch.equal(made.blocks[0].mlp.experts.gate_up[2], old.T), "the dense run's own seed"


def test_a_start_of_another_shape_is_refused_with_the_run_named(tmp_path):
    run = finished(tmp_path / "run", DENSE, FREEZE)
    with pytest.raises(ValueError, match=r"run began with another model: .*size mismatch"):
        Checkpoint(str(run)).load(other(DENSE | {"width": 64}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_heads": 1}, r"set model\.num_heads=2"),
        ({"rope_theta": 500.0}, r"set model\.rope_theta=10000\.0"),
        ({"norm_eps": 1e-6}, r"set model\.norm_eps=1e-05"),
        ({"soft_cap": 30.0}, r"set model\.soft_cap=null"),
        (
            {"parametrization": {"_target_": "kleiber.nn.StandardParametrization"}},
            "set model/parametrization=mup",
        ),
        (
            {"parametrization": {"_target_": "kleiber.nn.MuP", "base_width": 64}},
            r"set model\.parametrization\.base_width=32",
        ),
        (
            {"attention": {"_target_": "kleiber.nn.WindowAttention", "_partial_": True}},
            "set model/attention=full",
        ),
    ],
)
def test_a_mixture_that_would_be_another_function_of_the_dense_weights_is_refused_with_the_key(changes, told, tmp_path):
    dense = finished(tmp_path / "dense", DENSE)
    with pytest.raises(ValueError, match=told):
        Upcycle(str(dense)).load(other(DENSE | {"mlp": EXPERTS} | changes))


@pytest.mark.parametrize("key", ["model", "data", "objective", "callbacks"])
def test_a_recorded_config_that_does_not_pass_the_check_builds_nothing(tmp_path, key):
    run = finished(tmp_path / "run", DENSE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    wrong = {"_target_": "os.mkdir", "path": str(tmp_path / "built")}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {key: {"x": wrong} if key == "callbacks" else wrong}))
    for attempt in (lambda: open_model(run), lambda: Checkpoint(str(run)).load(other(DENSE))):
        with pytest.raises(ValueError, match=rf"config\.yaml: {key}"):
            attempt()
    assert not (tmp_path / "built").exists()


def test_a_run_of_a_gpu_opens_without_one(tmp_path):
    run = finished(tmp_path / "run", DENSE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= {"accelerator": "gpu"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_model(run).step == 1
