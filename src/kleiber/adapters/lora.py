"""Low-rank adapters: the weights stay, and small updates of chosen matrices are trained.

Our own models carry the updates themselves (`nn.lora`), stacked experts and the router included. A Hugging Face model
gets those of the optional package `peft`, which live inside the wrapped model until they are merged. A target that the
model does not have is refused, and so is a tied head, whose update would change the embedding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from kleiber.adapters.freeze import select
from kleiber.models.hf import HFModel
from kleiber.models.transformer import Transformer
from kleiber.nn import lora
from kleiber.nn.lora import adapt, decompose
from kleiber.types.contracts import Adapter
from kleiber.types.model import Model

TARGETS = ("attention", "mlp", "experts", "router", "head")
USUAL = ("attention", "mlp", "experts")


@dataclass(frozen=True)
class LoRA(Adapter):
    """W + s B A with A, B of rank r and s = alpha / r, or alpha / sqrt(r) where `rslora`.

    Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. Our qkv (and gate and up) are one
    matrix each and share one A. Heads of tasks are trained as they are.

    rank     rank of each update
    alpha    null: 2 rank
    targets  of attention, mlp, experts, router, head; null: those of the first three that the model has
    """

    rank: int = 8
    alpha: float | None = None
    rslora: bool = False
    targets: Sequence[str] | None = None

    learning_rate_factor: ClassVar[float] = 10.0
    magnitudes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0):
            raise ValueError(
                f"adapter.rank={self.rank} must be at least 1, adapter.alpha={self.alpha} positive or null"
            )
        wrong = [target for target in self.targets or () if target not in TARGETS]
        if wrong or (self.targets is not None and not self.targets):
            raise ValueError(f"adapter.targets={self.targets}: give some of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.rslora else self.rank)

    def apply(self, model: Model, seed: int) -> None:
        """Adds updates that are 0, drawn from `seed` alone; only they train from here on, and the heads that did."""
        names = self.matrices(model)
        for name, parameter in model.named_parameters():
            if not name.startswith("heads."):
                parameter.requires_grad_(False)
        if isinstance(model, HFModel):
            apply_peft(model, names, self.rank, self.scale, seed, self.magnitudes)
        else:
            assert isinstance(model, Transformer), f"no way to adapt a {type(model).__name__}"
            generator = torch.Generator().manual_seed(seed)
            for name in names:
                owner, _, last = name.rpartition(".")
                adapt(model.get_submodule(owner), last, self.rank, self.scale, generator)
                if self.magnitudes:
                    decompose(model.get_submodule(owner), last)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)

    def merge(self, model: Model) -> None:
        """Adds the updates to the weights: plain modules under their plain names, every parameter an ordinary one."""
        if isinstance(model, HFModel):
            merge_peft(model)
        for module in model.modules():
            lora.merge(module)
        model.requires_grad_(True)

    def matrices(self, model: Model) -> list[str]:
        """Names of the matrices and stacks that get an update, in the model's order."""
        wanted = self.targets
        if wanted is None:
            there = {target for target in USUAL if _has(model, target)}
            wanted = [target for target in USUAL if target in there]
        if "head" in wanted and model.tied:
            raise ValueError("adapter.targets has head, but the head is the embedding (model.tied=true): leave it out")
        if "head" in wanted and isinstance(model, HFModel):
            raise ValueError("adapter.targets has head, which model=hf reads as a plain matrix: leave it out")
        chosen = select(model, list(wanted), "adapter.targets")
        return [name for name, p in model.named_parameters() if name in chosen and p.ndim >= 2]


class DoRA(LoRA):
    """m (W + s B A) / |W + s B A| with a norm and a magnitude m for each output: LoRA turns, m stretches.

    Liu et al. 2024, arXiv:2402.09353, eq. 5. The norm is over the weights that lead to an output, as in the authors'
    code and in peft, of each expert's matrix by itself; it is a constant to the gradient (their section 4.3). Here qkv
    (and gate and up) have magnitudes of their own, though they share one A. A step costs more than LoRA's: W + s B A is
    made at each pass, and a linear layer keeps its output for the gradient of m. Arguments are those of LoRA.
    """

    magnitudes: ClassVar[bool] = True


def _has(model: Model, target: str) -> bool:
    try:
        return bool(select(model, [target], "adapter.targets"))
    except ValueError:
        return False


def apply_peft(model: HFModel, names: list[str], rank: int, scale: float, seed: int, magnitudes: bool) -> None:
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


def _refuse_others(model: HFModel, names: list[str]) -> None:
    """Raises ValueError where what carries an update is not what was asked for."""
    from peft.tuners.lora import LoraLayer  # pyright: ignore[reportMissingImports]
    from peft.tuners.lora.layer import ParamWrapper  # pyright: ignore[reportMissingImports]

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    factors = {
        f"{name}.{layer.parameter_name if isinstance(layer, ParamWrapper) else 'weight'}".replace(".base_layer", "")
        for name, layer in layers
    }
    other = sorted(factors ^ set(names))
    if other:
        raise ValueError(
            f"adapter=lora or dora with model=hf: this version of peft adapts other matrices than {len(names)} asked "
            f"for, {', '.join(other[:3])} among them: leave their part out of adapter.targets"
        )


def merge_peft(model: HFModel) -> None:
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
