"""Low-rank updates of weights in place, W + s B A, under the names that the weights already have.

A module keeps its parameters and their names. It gets two more parameters for each adapted weight, and a third with
`decompose`; its class changes, and `merge` changes it back. A linear layer adds the update to its output, so that the
gradient of W is not computed. Any other module (a stack of experts, a router, a head) reads W + s B A wherever its code
reads W, which costs the gradient of W.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.nn.precision import without_autocast
from kleiber.nn.sharding import full_tensor, is_sharded
from kleiber.types.batch import Role
from kleiber.types.model import LOW_RANK, Layer

A, B, M = LOW_RANK


class Adapted(Layer):
    """The base of the classes of adapted modules.

    plain        the class that the module had before
    lora_scales  the scale s of each adapted weight, by its name
    lora_off     whether the module computes without its updates
    """

    plain: ClassVar[type]
    lora_scales: dict[str, float]
    lora_off: bool = False

    def roles(self) -> dict[str, Role]:
        """Roles of the weights and of their updates.

        The fan-in of A grows with the width, as that of a hidden matrix; the fan-in of B is `rank` at every width. The
        learning rates are therefore those of LoRA+ (Hayou et al. 2024, arXiv:2402.12354): proportional to 1/width for A
        and constant for B. In an output layer or a router, whose results are multiplied by 1/width, the rate of A is
        constant too. Magnitudes are gains: no weight decay, and the full rate.
        """
        linear = isinstance(self, nn.Linear)
        roles = {"weight": Role("hidden", self.in_features), "bias": Role("vector", 1)} if linear else super().roles()
        for name in self.lora_scales:
            a, b = self.get_parameter(name + A), self.get_parameter(name + B)
            stack = a.ndim == 3
            kind = "output" if roles[name].kind == "output" else "hidden"
            roles[name + A] = Role(kind, a.shape[1] if stack else a.shape[-1], fixed_outputs=True)
            roles[name + B] = Role("output", b.shape[1] if stack else b.shape[-1])
            if name + M in self._parameters:
                roles[name + M] = Role("vector", 1)
        return roles


def adapt(module: nn.Module, name: str, rank: int, scale: float, generator: torch.Generator) -> None:
    """Adds an update of `rank`, which is 0 before training, to the matrix or stack of matrices `name` of `module`.

    A matrix is (out, in) with A (rank, in) and B (out, rank); a stack is (experts, in, out) with A (experts, in, rank)
    and B (experts, rank, out). A is uniform within 1/sqrt(in), B is 0. Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    weight = module._parameters[name]
    assert weight is not None and weight.ndim in (2, 3), f"{name} must be a matrix or a stack of matrices"
    fan_in = weight.shape[_inputs(weight)]
    shapes = _shapes(weight, rank)
    a = (torch.rand(shapes[0], generator=generator) * 2 - 1) / fan_in**0.5
    zeros = torch.zeros(shapes[1], dtype=weight.dtype, device=weight.device)
    module.register_parameter(name + A, nn.Parameter(a.to(weight.device, weight.dtype)))
    module.register_parameter(name + B, nn.Parameter(zeros))
    plain, before = (module.plain, module.lora_scales) if isinstance(module, Adapted) else (type(module), {})
    scales = before | {name: scale}
    module.__class__ = _adapted(plain, tuple(sorted(scales)))
    module.lora_scales = scales  # type: ignore[assignment]


def decompose(module: nn.Module, name: str) -> None:
    """Adds a magnitude m per output to the adapted `name` of `module`, which then computes with m V / |V|.

    V is W + s B A, and m starts as |V|, so that the matrix is W at first. The norm is taken over the incoming weights
    of an output and has no gradient: Liu et al. 2024, arXiv:2402.09353, eq. 5 and section 4.3. Magnitudes are (out) for
    a matrix and (experts, out) for a stack. Weights of 0 stay 0.
    """
    weight = module._parameters[name]
    assert weight is not None and name + A in module._parameters, f"{name} has no update"
    module.register_parameter(name + M, nn.Parameter(full_tensor(_norms(weight))))


def merge(module: nn.Module) -> None:
    """Adds the updates to the weights and restores the class of `module`; bit-identical before training.

    Does nothing to a module that is not adapted.
    """
    if not isinstance(module, Adapted):
        return
    for name, scale in module.lora_scales.items():
        weight = module._parameters[name]
        assert weight is not None
        with torch.no_grad():
            weight.copy_(_effective(module, name, scale))
        for suffix in (A, B, M):
            module._parameters.pop(name + suffix, None)
    del module.lora_scales
    module.__class__ = module.plain


@contextmanager
def without_updates(model: nn.Module) -> Iterator[None]:
    """Turns all updates of the model off, those of peft too: within it, the outputs are bit-identical to before."""
    ours = [module for module in model.modules() if isinstance(module, Adapted)]
    theirs = []
    if "peft" in sys.modules:  # which takes seconds to import
        from peft.tuners.tuners_utils import BaseTunerLayer

        theirs = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for module in ours:
        module.lora_off = True
    for layer in theirs:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for module in ours:
            module.lora_off = False
        for layer in theirs:
            layer.enable_adapters(True)


def _shapes(weight: Tensor, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if weight.ndim == 2:
        return (rank, weight.shape[1]), (weight.shape[0], rank)
    experts, fan_in, fan_out = weight.shape
    return (experts, fan_in, rank), (experts, rank, fan_out)


def _inputs(weight: Tensor) -> int:
    """The axis of the inputs of a weight: -1 of a matrix (out, in), -2 of a stack of matrices (experts, in, out)."""
    return -1 if weight.ndim == 2 else -2


def _norms(weight: Tensor) -> Tensor:
    """The norm of the weights of each output, without a gradient."""
    return torch.linalg.vector_norm(weight.detach(), dim=_inputs(weight))


def _gain(magnitudes: Tensor, whole: Tensor) -> Tensor:
    """The factor of each output: its magnitude over the norm of its weights in `whole`; exactly 1 before training."""
    return magnitudes / _norms(whole).clamp(min=torch.finfo(whole.dtype).tiny)


def _effective(module: Adapted, name: str, scale: float) -> Tensor:
    """The matrix with which the layer computes: W + s B A, scaled to the magnitudes of DoRA if there are any."""
    weight, magnitudes = module._parameters[name], module._parameters.get(name + M)
    assert weight is not None
    if module.lora_off or is_sharded(weight):  # FSDP2 reads the attribute for the parameter itself
        return weight
    whole = _updated(module, name, scale)
    if magnitudes is None:
        return whole
    return whole * _gain(magnitudes, whole).unsqueeze(_inputs(whole))


def _updated(module: nn.Module, name: str, scale: float) -> Tensor:
    """W + s B A in the precision of W also under autocast, because rounding here would change the weight itself."""
    weight, a, b = (module._parameters[name + suffix] for suffix in ("", A, B))
    assert weight is not None and a is not None and b is not None
    with without_autocast(weight.device):
        return weight + scale * (b @ a if weight.ndim == 2 else a @ b)


class AdaptedLinear(Adapted, nn.Linear):
    """A linear layer with a low-rank update: x (s B A).T is added to the output of the frozen layer."""

    plain = nn.Linear
    weight_lora_a: Tensor
    weight_lora_b: Tensor

    def forward(self, x: Float[Tensor, "*axes in"]) -> Float[Tensor, "*axes out"]:
        """x (W + s B A).T + bias, of which each output is scaled to its magnitude where there are magnitudes."""
        if self.lora_off:
            return F.linear(x, self.weight, self.bias)
        magnitudes, scale = self._parameters.get("weight" + M), self.lora_scales["weight"]
        y = F.linear(x, self.weight, self.bias if magnitudes is None else None)
        y = torch.add(y, F.linear(F.linear(x, self.weight_lora_a), self.weight_lora_b), alpha=scale)
        if magnitudes is None:
            return y
        with torch.no_grad():
            whole = _updated(self, "weight", scale)
        scaled = y * _gain(magnitudes, whole)  # in fp32 under autocast: bf16 cannot resolve the steps of magnitudes
        return (scaled if self.bias is None else scaled + self.bias).to(y.dtype)


@cache
def _adapted(plain: type, names: tuple[str, ...]) -> type:
    """The class of an adapted module: `plain` with the named weights replaced where they are read."""
    if plain is nn.Linear:
        return AdaptedLinear
    members = {name: _reader(name) for name in names}
    return type(f"Adapted{plain.__name__}", (Adapted, plain), {"plain": plain, **members})


def _reader(name: str) -> property:
    return property(lambda self: _effective(self, name, self.lora_scales[name]))
