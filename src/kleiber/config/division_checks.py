"""Checks that the machine has the devices of `trainer`, and that a model can be divided over them.

Each error names the keys. Imports no torch, except to count the GPUs of a machine that has some.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.config.stage_checks import adds_weights
from kleiber.config.targets import argument, class_attribute
from kleiber.types import Config


def check_division(config: Config) -> None:
    """Raises ConfigError for devices that there are not, and for what does not work with trainer=expert."""
    trainer = config["trainer"]
    _check_devices(trainer)
    if not class_attribute(trainer["_target_"], "divides_experts"):
        return
    devices = argument(trainer, "devices")
    _check_experts(config["model"], devices)
    refused = {
        "trainer.compile=true": argument(trainer, "compile"),
        f"retention={'+'.join(config.get('retention') or {})}": any((config.get("retention") or {}).values()),
        "adapter=lora or dora": adds_weights(config.get("adapter")),
    }
    for key, chosen in refused.items():
        if chosen and devices > 1:
            raise ConfigError(
                f"{key} does not work with the divided experts of trainer=expert: remove it, or set trainer=ddp"
            )


def _check_devices(trainer: Config) -> None:
    devices = argument(trainer, "devices")
    if class_attribute(trainer["_target_"], "is_distributed") is False and devices != 1:
        raise ConfigError(f"trainer.devices={devices} needs a distributed trainer: set trainer=ddp")
    if class_attribute(trainer["_target_"], "shards_weights") and devices < 2:
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
    mlp = mlp if isinstance(mlp, Mapping) and "_target_" in mlp else {"_target_": "kleiber.nn.SwiGLU"}
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
