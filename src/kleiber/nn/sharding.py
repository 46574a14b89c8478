"""Full tensors of a model and an optimizer that are sharded over ranks, and optimizer state by parameter name.

Functions that gather are collective: every rank must call them at the same point. Without sharding they do nothing, and
no rank waits for another. Nothing here imports FSDP or DTensor, which is slow: what is sharded has imported them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

OptimizerState = dict[str, dict[str, Tensor | float]]  # by parameter name and by key


@contextmanager
def full_parameters(model: nn.Module) -> Iterator[None]:
    """Gives every rank all weights as plain tensors, so that it can read them or run the model without other ranks.

    Values that are written to them within the context are lost at its end.
    """
    parts = sharded_modules(model)
    # The root keeps its weights from the forward to the backward pass.
    blocks = [part for part in parts if part is not model]
    for part in parts:
        part.unshard()
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    # These hooks of FSDP2 would shard a module again when its state_dict is read.
    hooks = [(module, module._state_dict_pre_hooks) for module in model.modules()] if parts else []
    for module, _ in hooks:
        module._state_dict_pre_hooks = OrderedDict()
    try:
        with whole_parameters(model):
            yield
    finally:
        for module, hook in hooks:
            module._state_dict_pre_hooks = hook
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


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


def gather_state(state: OptimizerState, keep: bool) -> OptimizerState:
    """Optimizer state by parameter name with full tensors on the CPU, gathered one at a time.

    Returns `state` itself where nothing is sharded.

    keep  False: this rank only takes part in the communication, and returns an empty state
    """
    if not any(is_sharded(value) for values in state.values() for value in values.values()):
        return state
    full_state: OptimizerState = {}
    for name, values in state.items():
        for key, value in values.items():
            full = full_tensor(value) if isinstance(value, Tensor) else value
            if keep:
                full_state.setdefault(name, {})[key] = full.cpu() if isinstance(full, Tensor) else full
    return full_state


def place_like(value: Tensor | float, parameter: Tensor) -> Tensor | float:
    """A value of an optimizer's state on the device of its parameter, and sharded like it where their shapes agree."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(parameter.device)
    if is_sharded(parameter) and value.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        # All ranks have read the same file, so each takes its shard and nothing is sent.
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def scalar(value: Tensor) -> float:
    """The value of a tensor with one element, summed over ranks where it is a partial sum on each."""
    return float(full_tensor(value))


def full_tensor(value: Tensor) -> Tensor:
    """The whole tensor of which `value` is a shard; `value` itself where it is not sharded."""
    return value.full_tensor() if is_sharded(value) else value


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
