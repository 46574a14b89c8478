"""Autocast on any device.

PyTorch raises an error when asked about autocast on a device that does not support it. Among these is the meta device,
on which kleiber counts the FLOPs of a model without weights.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which autocast is off on `device`."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Returns the type in which autocast computes matrix products on `device`; None where autocast is off."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def to_autocast(x: Tensor) -> Tensor:
    """Returns `x` in the precision of autocast, where that is enabled."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None else x.to(dtype)
