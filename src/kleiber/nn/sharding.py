"""Models, optimizers and nested states whose tensors are sharded over ranks (FSDP2), and their full tensors.

Every rank holds a share of each parameter, along its first axis, as a DTensor. Functions that gather are collective:
every rank must call them at the same point. Without sharding they do nothing, and no rank waits for another. Nothing
here imports FSDP or DTensor before something is sharded, because that import is slow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kleiber.types import Json

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

STATE_HOOKS = ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
OptimizerState = dict[str, dict[str, Tensor | float]]  # by parameter name and by key

_whole: WeakSet[nn.Module] = WeakSet()  # models within `full_parameters`


@contextmanager
def full_parameters(model: nn.Module) -> Iterator[None]:
    """Gives every rank all weights as plain tensors, so that it can read them or run the model without other ranks.

    Values that are written to them within the context are lost at its end. Within another such context it does nothing.
    """
    parts = sharded_modules(model)
    if not parts or model in _whole:
        with whole_parameters(model):
            yield
        return
    # The root keeps its weights from the forward to the backward pass.
    blocks = [part for part in parts if part is not model]
    held = [(module, *pair) for module in model.modules() for pair in module.named_parameters(recurse=False)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_backward(False, recurse=False)
    for module, name, share in held:
        gathered = module._parameters[name]
        if gathered is not None and gathered.dtype != share.dtype:  # in bf16
            module._parameters[name] = nn.Parameter(full_tensor(share.detach()), share.requires_grad)
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    # FSDP2's hooks for state dicts would shard a module again.
    hooks = [(module, name, vars(module)[name]) for module in model.modules() for name in STATE_HOOKS]
    for module, name, hook in hooks:
        vars(module)[name] = type(hook)()
    _whole.add(model)
    try:
        yield
    finally:
        _whole.discard(model)
        for module, name, hook in hooks:
            vars(module)[name] = hook
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.set_reshard_after_backward(True, recurse=False)
            part.reshard()


@contextmanager
def joint_passes(model: nn.Module) -> Iterator[None]:
    """For forward passes that all ranks make together, which under FSDP2 gather the weights of one block at a time.

    Shards at the end what the last pass left gathered. Weights that are divided in another way are whole.
    """
    if not waits_for_ranks(model):
        with full_parameters(model):
            yield
        return
    try:
        yield
    finally:
        for part in sharded_modules(model):
            part.reshard()


def waits_for_ranks(model: nn.Module) -> bool:
    """Whether a forward pass gathers weights, so that all ranks must make equally many of them."""
    return model not in _whole and bool(sharded_modules(model))


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules of the model that FSDP2 shards, each with its own group of parameters."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether a value is this rank's shard of a larger tensor."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(value, tensors.DTensor)


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded, which shares its memory; `value` itself where it is not."""
    return value.to_local() if is_sharded(value) else value


def full_tensor(value: Tensor) -> Tensor:
    """The whole tensor of which `value` is a shard; `value` itself where it is not sharded."""
    return value.full_tensor() if is_sharded(value) else value


@torch.no_grad()
def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The sum of the products of all elements of two lists of tensors, in one collective where they are sharded."""
    total = torch.zeros((), dtype=first[0].dtype, device=first[0].device)
    for a, b in zip(first, second, strict=True):
        total += (local(a) * local(b)).sum()
    if any(is_sharded(value) for value in first):
        dist.all_reduce(total)
    return total


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimizer's state by parameter name, independent of how parameters are grouped."""
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Restores the optimizer's state by parameter name. Raises ValueError where the names differ."""
    parameters = {
        n: p for group in optimizer.param_groups for n, p in zip(group["names"], group["params"], strict=True)
    }
    if state and state.keys() != parameters.keys():
        raise ValueError(
            "the optimizer state is for other parameters; in only one of the two: "
            f"{sorted(state.keys() ^ parameters.keys())[:5]}"
        )
    for name, values in state.items():
        # Adam's step count lives on the parameter's device only when fused or capturable, which is how it was saved.
        optimizer.state[parameters[name]] = {key: place_like(value, parameters[name]) for key, value in values.items()}


def place_like(value: Tensor | float, parameter: Tensor) -> Tensor | float:
    """A value on the device of a parameter, and sharded like it where their shapes agree."""
    if not isinstance(value, Tensor) or is_sharded(value):
        return value
    value = value.to(parameter.device)
    if is_sharded(parameter) and value.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        # All ranks have the same value, so each takes its shard and nothing is sent.
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def place_by_name(values: Json, model: nn.Module) -> Json:
    """Nested dictionaries in which each tensor under the name of a parameter of the model is placed like it."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any(is_sharded(parameter) for parameter in parameters.values()):
        return values

    def placed(name: str, value: object) -> object:
        if isinstance(value, dict):
            return {key: placed(key, entry) for key, entry in value.items()}
        return place_like(value, parameters[name]) if isinstance(value, Tensor) and name in parameters else value

    return {key: placed(key, value) for key, value in values.items()}


def needs_other_ranks(model: nn.Module) -> bool:
    """Whether a rank cannot have all weights without the other ranks."""
    return bool(sharded_modules(model)) or any(is_sharded(parameter) for parameter in model.parameters())


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Replaces parameters that are sharded without FSDP2, such as experts, by whole plain ones within the context."""
    held = [(module, *pair) for module in model.modules() for pair in module.named_parameters(recurse=False)]
    shards = [(module, name, parameter) for module, name, parameter in held if is_sharded(parameter.data)]
    for module, name, shard in shards:
        module.register_parameter(name, nn.Parameter(full_tensor(shard.detach()), shard.requires_grad))
    try:
        yield
    finally:
        for module, name, shard in shards:
            module.register_parameter(name, shard)


def split_sharded(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors that are sharded and those that are not, which `torch._foreach_` functions do not take together."""
    parts: dict[bool, list[Tensor]] = {}
    for tensor in tensors:
        parts.setdefault(is_sharded(tensor), []).append(tensor)
    return list(parts.values())
