"""Low-rank updates of weights in place: W + s B A, under the names that the weights already have.

A module keeps its parameters and their names and gets two more beside each adapted one, and a third with `decompose`;
only its class changes, and `merged` changes it back. A linear layer adds the update to its output, so that no gradient
of W is ever made; any other module (a stack of experts, a router, a head) reads W + s B A wherever its code says W, at
the price of that gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.types.batch import Role

A, B, M = "_lora_a", "_lora_b", "_lora_m"


def adapt(module: nn.Module, name: str, rank: int, scale: float, generator: torch.Generator) -> None:
    """Gives the matrix, or the stack of matrices, `name` of `module` an update of `rank`, which is 0 until trained.

    A matrix is (out, in) with A (rank, in) and B (out, rank); a stack is (experts, in, out) with A (experts, in, rank)
    and B (experts, rank, out). A is uniform within 1/sqrt(in), B is 0. Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    weight = module._parameters[name]
    assert weight is not None and weight.ndim in (2, 3), f"{name} is no matrix and no stack of matrices"
    fan_in = weight.shape[_inputs(weight)]
    shapes = _shapes(weight, rank)
    a = (torch.rand(shapes[0], generator=generator) * 2 - 1) / fan_in**0.5
    module.register_parameter(name + A, nn.Parameter(a.to(weight)))
    module.register_parameter(name + B, nn.Parameter(weight.new_zeros(shapes[1])))
    scales = getattr(module, "lora_scales", {}) | {name: scale}
    plain = getattr(type(module), "plain", type(module))
    module.lora_scales = scales  # type: ignore[assignment]
    module.__class__ = _adapted(plain, tuple(sorted(scales)))


def decompose(module: nn.Module, name: str) -> None:
    """Gives the adapted `name` of `module` a magnitude m for each output: m (W + s B A) / |W + s B A|, at first W.

    The norm is that of an output's incoming weights, and a constant to the gradient: Liu et al. 2024, arXiv:2402.09353,
    eq. 5 and section 4.3. Magnitudes are (out) of a matrix, (experts, out) of a stack. Weights of 0 stay 0.
    """
    weight = module._parameters[name]
    assert weight is not None and name + A in module._parameters, f"{name} has no update"
    module.register_parameter(name + M, nn.Parameter(_norms(weight)))


def merged(module: nn.Module) -> None:
    """Adds the updates to the weights and makes `module` what it was; exact to the bit where nothing was trained."""
    plain = getattr(type(module), "plain", None)
    if plain is None:
        return
    for name, scale in module.lora_scales.items():  # type: ignore[union-attr, operator]
        weight = module._parameters[name]
        assert weight is not None
        with torch.no_grad():
            weight.copy_(_effective(module, name, scale))
        for suffix in (A, B, M):
            module._parameters.pop(name + suffix, None)
    del module.lora_scales
    module.__class__ = plain


@contextmanager
def without_updates(model: nn.Module) -> Iterator[None]:
    """The model as it was before it was adapted, to the bit: ours and peft's updates are passed over inside."""
    ours = [module for module in model.modules() if hasattr(module, "lora_scales")]
    theirs: list[Any] = [m for m in model.modules() if hasattr(m, "base_layer") and hasattr(m, "enable_adapters")]
    for module in ours:
        module.lora_off = True  # type: ignore[assignment]
    for layer in theirs:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for module in ours:
            del module.lora_off
        for layer in theirs:
            layer.enable_adapters(True)


def _shapes(weight: Tensor, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if weight.ndim == 2:
        return (rank, weight.shape[1]), (weight.shape[0], rank)
    experts, fan_in, fan_out = weight.shape
    return (experts, fan_in, rank), (experts, rank, fan_out)


def _inputs(weight: Tensor) -> int:
    """The axis of a matrix, or of a stack of matrices, along which what enters is summed."""
    return -1 if weight.ndim == 2 else -2


def _norms(weight: Tensor) -> Tensor:
    """The norm of the weights that lead to each output, without a gradient."""
    return torch.linalg.vector_norm(weight.detach(), dim=_inputs(weight))


def _gain(magnitudes: Tensor, whole: Tensor) -> Tensor:
    """What each output of W + s B A is multiplied by; exactly 1 before anything is trained."""
    return magnitudes / _norms(whole).clamp(min=torch.finfo(whole.dtype).tiny)


def _effective(module: nn.Module, name: str, scale: float) -> Tensor:
    """What stands in the place of W."""
    weight, magnitudes = module._parameters[name], module._parameters.get(name + M)
    assert weight is not None
    if hasattr(module, "lora_off"):
        return weight
    whole = _updated(module, name, scale)
    if magnitudes is None:
        return whole
    return whole * _gain(magnitudes, whole).unsqueeze(_inputs(whole))


def _updated(module: nn.Module, name: str, scale: float) -> Tensor:
    """W + s B A in the precision of W, whatever autocast says: what is rounded here is the weight itself."""
    weight, a, b = (module._parameters[name + suffix] for suffix in ("", A, B))
    assert weight is not None and a is not None and b is not None
    with torch.autocast(weight.device.type, enabled=False):
        return weight + scale * (b @ a if weight.ndim == 2 else a @ b)


@cache
def _adapted(plain: type, names: tuple[str, ...]) -> type:
    """The class of an adapted module: `plain` with the named weights replaced where they are read."""
    members: dict[str, Any] = {"plain": plain, "roles": lambda self: _roles(self, plain)}
    if plain is nn.Linear:
        members["forward"] = _linear
    else:
        members |= {name: _reader(name) for name in names}
    return type(f"Adapted{plain.__name__}", (plain,), members)


def _reader(name: str) -> property:
    return property(lambda self: _effective(self, name, self.lora_scales[name]))


def _linear(self: Any, x: Float[Tensor, "*axes in"]) -> Float[Tensor, "*axes out"]:
    if hasattr(self, "lora_off"):
        return F.linear(x, self.weight, self.bias)
    magnitudes, scale = self._parameters.get("weight" + M), self.lora_scales["weight"]
    y = F.linear(x, self.weight, self.bias if magnitudes is None else None)
    y = torch.add(y, F.linear(F.linear(x, self.weight_lora_a), self.weight_lora_b), alpha=scale)
    if magnitudes is None:
        return y
    with torch.no_grad():
        whole = _updated(self, "weight", scale)
    scaled = y * _gain(magnitudes, whole)  # under autocast in fp32: magnitudes move by less than bf16 resolves
    return (scaled if self.bias is None else scaled + self.bias).to(y.dtype)


def _roles(module: Any, plain: type) -> dict[str, Role]:
    """Roles of the weights and of their updates.

    A reads a fan-in that grows with the width, as a hidden matrix does; B reads `rank` numbers whatever the width, so
    its rate does not fall with it. These are the rates of LoRA+ (Hayou et al. 2024, arXiv:2402.12354): 1/width and 1.
    Magnitudes are gains: not decayed, at the full rate.
    """
    if plain is nn.Linear:
        found = {"weight": Role("hidden", module.in_features), "bias": Role("vector", 1)}
    else:
        found = dict(plain.roles(module))  # type: ignore[attr-defined]
    for name in module.lora_scales:
        a, b = module._parameters[name + A], module._parameters[name + B]
        stack = a.ndim == 3
        found[name + A] = Role("hidden", a.shape[1] if stack else a.shape[-1])
        found[name + B] = Role("output", b.shape[1] if stack else b.shape[-1])
        if name + M in module._parameters:
            found[name + M] = Role("vector", 1)
    return found
