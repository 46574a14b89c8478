"""A run opened for use has its final weights, including those that the checkpoint of an adapter lacks."""

import shutil
import sys

import pytest
import torch
import yaml

from kleiber.config.errors import ConfigError
from kleiber.models.hf_config import wrapped_model_node
from kleiber.runs.open import open_model
from kleiber.runs.start_point import Checkpoint

from .trained_runs import DENSE, FREEZE, WRAPPED, new_weights, trained_run


@pytest.mark.parametrize("node", [DENSE, WRAPPED], ids=["own", "wrapped"])
def test_weights_that_an_adapter_did_not_train_are_those_drawn_with_the_seed_of_the_run(node, tmp_path):
    run = trained_run(tmp_path / "run", node, FREEZE)
    opened, started = open_model(str(run)).model, new_weights(node)
    state = torch.random.get_rng_state()
    Checkpoint(str(run)).load(started)
    assert torch.equal(torch.random.get_rng_state(), state)
    drawn, moved = new_weights(node, seed=3).state_dict(), opened.state_dict()
    frozen = [name for name in drawn if ".mlp." in name]
    assert frozen and all(torch.equal(moved[name], drawn[name]) for name in frozen)
    assert any(not torch.equal(moved[name], drawn[name]) for name in drawn)
    assert all(torch.equal(value, moved[name]) for name, value in started.state_dict().items())


@pytest.mark.parametrize("key", ["model", "data", "objective", "adapter"])
def test_a_recorded_config_that_does_not_pass_the_check_builds_nothing(tmp_path, key):
    run = trained_run(tmp_path / "run", DENSE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    wrong = {"_target_": "os.mkdir", "path": str(tmp_path / "built")}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {key: wrong}))
    for attempt in (lambda: open_model(run), lambda: Checkpoint(str(run)).load(new_weights(DENSE))):
        with pytest.raises(ValueError, match=rf"config\.yaml: {key}"):
            attempt()
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("group", "node"),
    [
        ("trainer", {"accelerator": "gpu"}),
        ("logger", {"mlflow": {"_target_": "kleiber.training.MLflow"}}),
        ("logger", {"lab": {"_target_": "a_lab_that_is_not_installed.Logger"}}),
        ("callbacks", {"checkpoints": {"_target_": "kleiber.training.Checkpoints", "remote": "s3://bucket/runs"}}),
        ("privacy", {"_target_": "kleiber.optimizers.DPSGD", "epsilon": 8.0}),
        ("evals", {"lab": {"_target_": "a_lab_that_is_not_installed.Evaluation"}}),
    ],
)
def test_a_run_opens_without_the_gpu_and_the_packages_that_only_its_training_needs(tmp_path, group, node, monkeypatch):
    for module in ("mlflow", "s3fs", "opacus"):
        monkeypatch.setitem(sys.modules, module, None)
    run = trained_run(tmp_path / "run", DENSE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[group] = {**(config[group] or {}), **node}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_model(run).step == 1


def test_a_damaged_newest_checkpoint_is_named_once_and_the_one_before_is_opened(tmp_path, capsys):
    """FAULTS 5, 64."""
    run = trained_run(tmp_path / "run", DENSE)
    first = run / "stages/main/checkpoints/step-00000001"
    shutil.copytree(first, first.with_name("step-00000002"))
    damaged = first.with_name("step-00000002") / "meta.json"
    damaged.write_text(
        damaged.read_text().replace('"step": 1', '"step": 2').replace('"sha256": {', '"sha256": {}, "x": {')
    )
    assert open_model(run).step == 1
    Checkpoint(str(run)).load(new_weights(DENSE))
    assert capsys.readouterr().err.count(str(damaged)) == 1


def save_foreign(folder, kind: str, **sizes) -> None:
    """Writes a tiny Hugging Face model with 6 tokens into a folder, as transformers would."""
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 6}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1)
    AutoModel.from_config(AutoConfig.for_model(kind, **small, **special, **sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate("abcdef")}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "sizes", "longest"),
    [
        ("gpt2", {"n_positions": 24}, 24),
        ("bert", {"max_position_embeddings": 24}, 24),
        ("roberta", {"max_position_embeddings": 26}, 24),  # positions begin above the id of padding
    ],
)
def test_a_foreign_model_with_few_positions_is_opened(kind, sizes, longest, tmp_path):
    save_foreign(tmp_path, kind, **sizes)
    assert open_model(tmp_path).model.context == longest
    assert wrapped_model_node(tmp_path)["context"] == max(sizes.values())


def test_a_foreign_model_that_this_machine_cannot_hold_is_refused_before_it_is_built(tmp_path):
    run = trained_run(tmp_path / "run", DENSE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    for size in ({"depth": 10_000, "width": 2**20, "context": 256}, {"depth": 10_000, "context": 2**24}):
        (run / "config.yaml").write_text(
            yaml.safe_dump({**config, "model": {**DENSE, **size}, "batch": {"tokens": 2**24}})
        )
        with pytest.raises(ConfigError, match=r"model\.depth=10000.* GiB"):
            open_model(run)
