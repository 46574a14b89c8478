"""Checks that the machine has the devices of `trainer`, and that a model can be divided over them.

Each error names the keys. Imports no torch, except to count the GPUs of a machine that has some.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.config.model_size import gated_hidden, width_of
from kleiber.config.targets import argument
from kleiber.types import Config

# Trainers that divide parts of the model over devices, by class.
DIVIDED = {"kleiber.training.ExpertParallel": "expert", "kleiber.training.TensorParallel": "tensor"}
GATED = "kleiber.nn.SwiGLU"
ATTENTION = ("kleiber.nn.FullAttention", "kleiber.nn.WindowAttention")


def check_division(config: Config) -> None:
    """Raises ConfigError for devices that there are not, and for what does not work with trainer=expert or tensor."""
    trainer = config["trainer"]
    _check_devices(trainer)
    name, devices = DIVIDED.get(trainer["_target_"]), argument(trainer, "devices")
    if name is None:
        return
    if name == "expert":
        _check_experts(config["model"], devices)
    else:
        _check_dense(config["model"], devices)
    refused = {
        "trainer.compile=true": argument(trainer, "compile"),
        "optimizer=muon": name == "tensor" and config["optimizer"]["_target_"].endswith(".Muon"),
        f"retention={'+'.join(config.get('retention') or {})}": any((config.get("retention") or {}).values()),
        "adapter=lora or dora": config.get("adapter") and not config["adapter"]["_target_"].endswith(".Freeze"),
    }
    for key, chosen in refused.items():
        if chosen and devices > 1:
            raise ConfigError(
                f"{key} does not work with the divided parameters of trainer={name}: remove it, or set trainer=ddp"
            )


def _check_devices(trainer: Config) -> None:
    devices = argument(trainer, "devices")
    if trainer["_target_"] == "kleiber.training.Local" and devices != 1:
        raise ConfigError(f"trainer.devices={devices} needs a distributed trainer: set trainer=ddp")
    if trainer["_target_"] == "kleiber.training.FSDP" and devices < 2:
        raise ConfigError(f"trainer.devices={devices} must be >= 2 for trainer=fsdp")
    if argument(trainer, "accelerator") == "gpu" and not _has_gpu():
        raise ConfigError("trainer.accelerator=gpu, but this machine has no GPU: set trainer.accelerator=cpu")


def _has_gpu() -> bool:
    """Whether this machine has a GPU. Looks for device files first, because importing torch is slow."""
    if (
        sys.platform == "linux"
        and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
        and any(Path("/dev").glob("nvidia[0-9]*"))
    ):
        return True
    import torch

    return torch.cuda.is_available()


def _check_experts(model: Config, devices: int) -> None:
    mlp = model.get("mlp")
    mlp = mlp if isinstance(mlp, Mapping) and "_target_" in mlp else {"_target_": GATED}
    experts = argument(mlp, "num_experts")
    if experts is None:
        raise ConfigError(
            "trainer=expert divides the experts of a mixture over the devices, and this model has none: set model=moe, "
            "or trainer=ddp"
        )
    granularity = argument(mlp, "granularity") or 1
    if experts * granularity % devices:
        parts = f" x model.mlp.granularity={granularity}" if granularity > 1 else ""
        raise ConfigError(
            f"model.mlp.num_experts={experts}{parts} must be a multiple of trainer.devices={devices} for trainer=expert"
        )


def _check_dense(model: Config, devices: int) -> None:
    """Refuses layers that have no plan of how to divide them, and sizes that do not divide by the devices."""
    mlp, attention = model.get("mlp") or {"_target_": GATED}, model.get("attention") or {"_target_": ATTENTION[0]}
    for key, value, allowed in (
        ("model", model["_target_"], ("kleiber.models.Transformer",)),
        ("model.mlp", mlp["_target_"], (GATED, "kleiber.nn.GELU", "kleiber.nn.ReLU2")),
        ("model.attention", attention["_target_"], ATTENTION),
    ):
        if value not in allowed:
            raise ConfigError(
                f"{key}={value} cannot be divided by trainer=tensor, which knows {', '.join(allowed)}: set trainer=ddp "
                "or fsdp, or trainer=expert for a mixture"
            )
    if argument(model, "positions") == "alibi":
        raise ConfigError("model.positions=alibi does not work with trainer=tensor: set another one, or trainer=ddp")
    width = width_of(model)
    usual = 2 if width < 128 else width // 64
    heads = argument(model, "num_heads") or argument(attention, "num_heads") or usual
    shared = argument(model, "num_kv_heads") or argument(attention, "num_kv_heads") or heads
    hidden = argument(mlp, "hidden") or (gated_hidden(width) if mlp["_target_"] == GATED else 4 * width)
    sizes = {"model.num_heads": heads, "model.num_kv_heads": shared, "model.mlp.hidden": hidden}
    for key, value in sizes.items():
        if value % devices:
            raise ConfigError(f"{key}={value} must be a multiple of trainer.devices={devices} for trainer=tensor")
