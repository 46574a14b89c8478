"""Low-rank adapters: the weights are frozen, and low-rank updates of chosen matrices are trained.

In kleiber's models the updates are parameters of the modules (`nn.lora`), stacked experts and the router included. In a
Hugging Face model they are those of the optional package `peft`, inside the wrapped model until they are merged. A
target that the model does not have is refused, and so is a tied head, whose update would change the embedding.
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
from kleiber.types import Positive, Width
from kleiber.types.contracts import Adapter
from kleiber.types.model import Model

TARGETS = ("attention", "mlp", "experts", "router", "head")
DEFAULT_TARGETS = ("attention", "mlp", "experts")


@dataclass(frozen=True)
class LoRA(Adapter):
    """W + s B A, with A and B of rank r and s = alpha / r, or alpha / sqrt(r) with `rslora`.

    Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. In kleiber's models the matrices of
    queries, keys and values are stored as one and share one A, and so are those of gate and up. Output layers of tasks
    are trained without low-rank updates.

    rank     rank of each update
    alpha    scale of the updates; null: 2 rank, or with `rslora` 16 for every rank, the same at rank 8
    rslora   whether s divides by sqrt(r) instead of r
    targets  parts that get updates: attention, mlp, experts, router, head; null for those of the first three that the
             model has
    """

    adds_weights = True

    rank: Width = 8
    alpha: Positive | None = None
    rslora: bool = False
    targets: Sequence[str] | None = None

    learning_rate_factor: ClassVar[float] = 10.0
    magnitudes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets or () if target not in TARGETS]
        if unknown or (self.targets is not None and not self.targets):
            raise ValueError(f"adapter.targets={self.targets} must be a list of some of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """The factor s of every low-rank update s B A: alpha / rank, or alpha / sqrt(rank) with rslora."""
        if self.rslora:
            return (16.0 if self.alpha is None else self.alpha) / self.rank**0.5
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def check(self, model: Model) -> None:
        """Raises ValueError for a rank above the width, a target that the model does not have, and other models."""
        if not isinstance(model, Transformer | HFModel):
            raise ValueError(
                f"adapter=lora and adapter=dora add updates to a Transformer, and this model is a "
                f"{type(model).__name__}: set adapter=freeze or adapter=null"
            )
        if self.rank > model.width:
            raise ValueError(f"adapter.rank={self.rank} must be <= {model.width}, the width of the model")
        self.matrices(model)

    def apply(self, model: Model, seed: int) -> None:
        """Adds updates that are 0 at first, with A drawn from `seed` alone; only they and heads of tasks train."""
        names = self.matrices(model)
        for name, parameter in model.named_parameters():
            if not name.startswith("heads."):
                parameter.requires_grad_(False)
        if isinstance(model, HFModel):
            apply_peft(model, names, self.rank, self.scale, seed, self.magnitudes)
        else:
            assert isinstance(model, Transformer), f"low-rank updates of a {type(model).__name__} are not implemented"
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
        """Adds the updates to the weights: modules and names are plain again, and every parameter is trainable."""
        if isinstance(model, HFModel):
            merge_peft(model)
        for module in model.modules():
            lora.merge(module)
        model.requires_grad_(True)

    def matrices(self, model: Model) -> list[str]:
        """Names of the matrices and stacks that get an update, in the model's order."""
        targets = self.targets
        if targets is None:
            targets = [target for target in DEFAULT_TARGETS if _has(model, target)]
        if "head" in targets and model.tied:
            raise ValueError(
                "adapter.targets contains head, but the head is the embedding (model.tied=true): remove head"
            )
        if "head" in targets and isinstance(model, HFModel):
            raise ValueError("adapter.targets contains head, which cannot be adapted with model=hf: remove head")
        selected = select(model, list(targets), "adapter.targets")
        roles = model.roles()  # the taps of a convolution are vectors, one for each channel
        return [
            name
            for name, parameter in model.named_parameters()
            if name in selected and parameter.ndim >= 2 and roles[name].kind != "vector"
        ]


class DoRA(LoRA):
    """m (W + s B A) / |W + s B A|, with a norm and a magnitude m for each output: B A changes directions, m lengths.

    Liu et al. 2024, arXiv:2402.09353, eq. 5. The norm is over the weights that lead to an output, as in the authors'
    code and in peft, and separate for each expert; the gradient treats it as a constant (their section 4.3). Queries,
    keys and values have separate magnitudes, though they share one A; so have gate and up. A step costs more than with
    LoRA: W + s B A is computed at each pass, and a linear layer saves its output for the gradient of m. Arguments are
    those of LoRA.
    """

    magnitudes: ClassVar[bool] = True


def _has(model: Model, target: str) -> bool:
    try:
        return bool(select(model, [target], "adapter.targets"))
    except ValueError:
        return False


def apply_peft(model: HFModel, names: list[str], rank: int, scale: float, seed: int, magnitudes: bool) -> None:
    """Adds updates of the parameters `names` by peft, with the magnitudes of DoRA or without.

    Raises ValueError where peft is not installed, and for magnitudes of stacked experts, which peft does not support.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("adapter=lora or dora with model=hf needs the package peft: pip install 'kleiber[peft]'")
    from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]

    inner = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    plain = {
        name: module
        for name, module in inner.items()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    stacked = [name for name in names if name not in plain]
    if magnitudes and stacked:
        raise ValueError(
            f"adapter=dora with model=hf: peft supports magnitudes of linear layers only, and {stacked[0]} is not one: "
            "remove its part from adapter.targets, or set adapter=lora"
        )
    # peft computes s = alpha / r.
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
        # Without a config: for a model that has one, peft renames the targets of mixtures as in older transformers.
        inject_adapter_in_model(config, nn.ModuleDict({"inner": model.inner}))
    _refuse_others(model, names)


def _refuse_others(model: HFModel, names: list[str]) -> None:
    """Raises ValueError where peft adapted other matrices than `names`."""
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
            f"adapter=lora or dora with model=hf: the matrices that this version of peft adapts differ from the "
            f"{len(names)} targets in {', '.join(other[:3])}: remove their part from adapter.targets"
        )


def merge_peft(model: HFModel) -> None:
    """Merges every adapted layer and replaces it by its base layer, the outermost first."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.tuners.lora import LoraLayer  # pyright: ignore[reportMissingImports]

    while layers := [(name, m) for name, m in model.inner.named_modules() if isinstance(m, LoraLayer)]:
        name, layer = layers[0]
        layer.merge()  # type: ignore[operator]
        owner, _, last = name.rpartition(".")
        setattr(model.inner.get_submodule(owner), last, layer.base_layer)  # type: ignore[union-attr]
