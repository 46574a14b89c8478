"""Full tensors of a model and an optimizer that are sharded over ranks (FSDP2).

Each function is collective: every rank must call it at the same point. Without sharding it does nothing and no rank
waits for another. FSDP and DTensor are recognized by their methods, because importing them is slow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OptimizerState = dict[str, dict[str, Any]]  # tensors and numbers, by parameter name and by key


@contextmanager
def full_parameters(model: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights as plain tensors, to read them or run the model without the other ranks.

    Values that are written to them are lost at the end.
    """
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    blocks = [
        part for part in parts if part is not model
    ]  # the root keeps its weights from the forward to the backward pass
    for part in parts:
        part.unshard()
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    # These hooks of FSDP2 would shard a module again when its state_dict is read.
    hooks = [(module, module._state_dict_pre_hooks) for module in model.modules()] if parts else []
    for module, _ in hooks:
        module._state_dict_pre_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, hook in hooks:
            module._state_dict_pre_hooks = hook
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is this rank's shard of a larger one."""
    return hasattr(tensor, "full_tensor")


def gather_state(state: OptimizerState, keep: bool) -> OptimizerState:
    """Optimizer state by parameter name, with full tensors on the CPU, gathered one at a time.

    keep  False: this rank takes part and returns an empty state; without shards `state` is returned as it is
    """
    if not any(is_sharded(value) for values in state.values() for value in values.values()):
        return state
    full_state: OptimizerState = {}
    for name, values in state.items():
        for key, value in values.items():
            full = full_tensor(value)
            if keep:
                full_state.setdefault(name, {})[key] = full.cpu() if isinstance(full, Tensor) else full
    return full_state


def place_like(value: Tensor | float, parameter: Tensor) -> Tensor | float:
    """A value of an optimizer's state on the device of its parameter, sharded as it is where their shapes agree."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(parameter.device)
    if is_sharded(parameter) and value.shape == parameter.shape:
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        # All ranks have read the same file, so each takes its shard and nothing is sent.
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def scalar(value: Tensor) -> float:
    """The number in a tensor of a single element, summed over ranks where each holds a part of it."""
    return float(full_tensor(value))


def full_tensor(value: Any) -> Any:
    """The tensor that `value` is a shard of, or `value` itself."""
    return value.full_tensor() if is_sharded(value) else value
