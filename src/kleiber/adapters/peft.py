"""LoRA of a Hugging Face model by the `peft` package, which is an optional extra and is imported here alone.

The updates live inside the wrapped model under peft's own names; merging gives back the modules that were there.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn


def apply_peft(model: Any, names: list[str], rank: int, scale: float, seed: int, magnitudes: bool) -> None:
    """Injects updates of the parameters `names`, with DoRA's magnitudes or without.

    Raises ValueError where peft is not installed, and for magnitudes of stacked experts, which it does not have.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("adapter=lora or dora with model=hf needs the package peft: pip install 'kleiber[peft]'")
    from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]

    inner = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    plain = {name: module for name, module in inner.items() if _is_linear(module)}
    stacked = [name for name in names if name not in plain]
    if magnitudes and stacked:
        raise ValueError(
            f"adapter=dora with model=hf: peft has no magnitudes for {stacked[0]}, which is no linear layer: leave it "
            "out of adapter.targets, or take adapter=lora"
        )
    # `scale` is s itself: alpha = s r gives peft's alpha / r.
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=[name.rpartition(".")[0] for name in plain],
        target_parameters=stacked or None,
        use_dora=magnitudes,
        fan_in_fan_out=any(not isinstance(module, nn.Linear) for module in plain.values()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Of what has a config of transformers', peft rewrites the targets of mixtures to those of an older version.
        inject_adapter_in_model(config, nn.ModuleDict({"inner": model.inner}))
    _refuse_others(model, names)


def _refuse_others(model: Any, names: list[str]) -> None:
    """Raises ValueError where what carries an update is not what was asked for."""
    from peft.tuners.lora import LoraLayer  # pyright: ignore[reportMissingImports]
    from peft.tuners.lora.layer import ParamWrapper  # pyright: ignore[reportMissingImports]

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    found = {
        f"{name}.{layer.parameter_name if isinstance(layer, ParamWrapper) else 'weight'}".replace(".base_layer", "")
        for name, layer in layers
    }
    other = sorted(found ^ set(names))
    if other:
        raise ValueError(
            f"adapter=lora or dora with model=hf: this version of peft adapts other matrices than {len(names)} asked "
            f"for, {', '.join(other[:3])} among them: leave their part out of adapter.targets"
        )


def merge_peft(model: Any) -> None:
    """Merges every layer of peft's and puts its base layer back in its place, outermost first until none is left."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.tuners.lora import LoraLayer  # pyright: ignore[reportMissingImports]

    while found := [(name, m) for name, m in model.inner.named_modules() if isinstance(m, LoraLayer)]:
        name, layer = found[0]
        layer.merge()  # type: ignore[operator]
        owner, _, last = name.rpartition(".")
        setattr(model.inner.get_submodule(owner), last, layer.base_layer)  # type: ignore[union-attr]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
