"""Folders of finished runs that were never trained, for tests that open them or start from them."""

from pathlib import Path

import torch
import yaml
from fake_run import fake_stage, write_summary
from omegaconf import DictConfig

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.targets import build
from kleiber.data.tokenizers import Bytes
from kleiber.runs.open import new_model
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


def trained_run(
    folder: Path, model: dict, adapter: dict | None = None, seed: int = 3, init: dict | None = None
) -> Path:
    """Writes the folder of a run that finished after one step, which changed every weight that it trained."""
    config, _ = resolve_config(Composer("train").compose([]))
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
    write_summary(folder, [fake_stage()])
    return folder


def new_weights(model: dict, seed: int = 4):
    """A model of this config with weights drawn with `seed`."""
    return new_model({"seed": seed, "model": model}, VOCAB)
