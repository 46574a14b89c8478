"""A model whose parameters are sharded over ranks (FSDP2), for what reads its weights: whole, for a while.

All of this is collective: every rank has to call it at the same point. On a model that is not sharded it does nothing,
and no rank waits for another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Every rank holds all weights as plain tensors, so that each may read them and run the model without the others.

    They are for reading: what is written to them is lost at the end.
    """
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    blocks = [part for part in parts if part is not model]  # the root keeps its own from a forward to the backward pass
    for part in parts:
        part.unshard()
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    # By which FSDP2 would shard again whatever is asked for its state_dict.
    hooks = [(module, module._state_dict_pre_hooks) for module in model.modules()] if parts else []
    for module, _ in hooks:
        module._state_dict_pre_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, own in hooks:
            module._state_dict_pre_hooks = own
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one rank's share of a larger one."""
    return hasattr(tensor, "full_tensor")


def gathered(state: dict[str, dict[str, Any]], keep: bool) -> dict[str, dict[str, Any]]:
    """Optimizer state by parameter name, with every share of a tensor made whole and moved to the CPU.

    One tensor at a time; ranks that do not `keep` it take part and forget it. Without shares it is returned as it is.
    """
    if not any(is_sharded(value) for values in state.values() for value in values.values()):
        return state
    found: dict[str, dict[str, Any]] = {}
    for name, values in state.items():
        for key, value in values.items():
            full = value.full_tensor() if is_sharded(value) else value
            if keep:
                found.setdefault(name, {})[key] = full.cpu() if isinstance(full, Tensor) else full
    return found


def placed(value: Any, parameter: Any) -> Any:
    """A value of an optimizer's state where its parameter is: this rank's share, if it has the parameter's shape."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(parameter.device)
    if is_sharded(parameter) and value.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        # All ranks have read the same file, so each takes its share and nothing is sent.
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def scalar(value: Tensor) -> float:
    """The number in a tensor of one, summed over ranks where each has a part of it."""
    full: Any = value
    return float(full.full_tensor() if is_sharded(full) else full)
