"""Checks that a model can be divided over devices as `trainer` says; each error names the keys. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from kleiber.config.cross_checks import argument
from kleiber.config.errors import ConfigError
from kleiber.types import Config

DIVIDED = {"kleiber.training.ExpertParallel": "expert"}  # trainers that divide parts of the model over devices


def check_division(config: Config) -> None:
    """Raises ConfigError for a model or a feature that does not work with trainer=expert.

    Features that read or change whole parameters do not.
    """
    trainer = config["trainer"]
    name, devices = DIVIDED.get(trainer["_target_"]), argument(trainer, "devices")
    if name is None:
        return
    _check_experts(config["model"], devices)
    refused = {
        "trainer.compile=true": argument(trainer, "compile"),
        "optimizer=muon": config["optimizer"]["_target_"].endswith(".Muon"),
        f"retention={'+'.join(config.get('retention') or {})}": any((config.get("retention") or {}).values()),
        "adapter": config.get("adapter"),
        "callbacks.ema": (config.get("callbacks") or {}).get("ema"),
    }
    for key, chosen in refused.items():
        if chosen and devices > 1:
            raise ConfigError(
                f"{key} does not work with the divided parameters of trainer={name}: remove it, or set trainer=ddp"
            )


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
