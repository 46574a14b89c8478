"""Low-rank adaptation of a loaded model: its weights stay, and a small update of chosen matrices is trained.

Our own models carry the updates themselves (`nn.lora`), stacked experts and router included; a model of Hugging Face's
gets those of `peft`. It refuses a target that the model does not have, and a tied head: the table would change too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from kleiber.adapters.parts import select
from kleiber.adapters.peft import apply_peft, merge_peft
from kleiber.models.hf_model import HFModel
from kleiber.models.transformer import Transformer
from kleiber.nn.lora import adapt, decompose, merged

TARGETS = ("attention", "mlp", "experts", "router", "head")
USUAL = ("attention", "mlp", "experts")


@dataclass(frozen=True)
class LoRA:
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

    def apply(self, model: Any, seed: int) -> None:
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

    def merge(self, model: Any) -> None:
        """Adds the updates to the weights: plain modules under their plain names, every parameter an ordinary one."""
        if isinstance(model, HFModel):
            merge_peft(model)
        for module in model.modules():
            merged(module)
        model.requires_grad_(True)

    def matrices(self, model: nn.Module) -> list[str]:
        """Names of the matrices and stacks that get an update, in the model's order."""
        wanted = self.targets
        if wanted is None:
            there = {target for target in USUAL if _has(model, target)}
            wanted = [target for target in USUAL if target in there]
        if "head" in wanted and getattr(model, "tied", False):
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


def _has(model: nn.Module, target: str) -> bool:
    try:
        return bool(select(model, [target], "adapter.targets"))
    except ValueError:
        return False
