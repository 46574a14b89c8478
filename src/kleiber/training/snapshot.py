"""Copies of a model and of nested states, and a thread that writes them while training goes on.

A step waits for the copy, not for the disk. The copies are on the CPU; tensors that were one before are one after.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from kleiber.nn.sharding import is_sharded
from kleiber.types import Json


class Snapshot(nn.Module):
    """A module with the given state dict, which `copy_tensors` made."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:
        """The copied tensors by name, tied ones as one."""
        return dict(self.tensors)


def copy_tensors(state: Json, keep: bool = True) -> Json:
    """Returns a copy of nested dictionaries, lists and tuples with its tensors copied to the CPU.

    Tensors of a GPU are copied to pinned memory, several times as fast as to other memory.
    Shards are gathered to full tensors one at a time, for which all ranks need the same keys in the same order.

    keep  False: this rank only takes part in the communication, and gets None in place of the full tensors
    """
    copies: dict[object, Tensor | None] = {}
    devices: set[torch.device] = set()

    def on_host(tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor.to("cpu", copy=True)
        devices.add(tensor.device)
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

    def copied(value: object) -> object:
        """The copy of a tensor, of a container, or the value itself."""
        if is_sharded(value):
            if id(value) not in copies:
                full = value.full_tensor()  # a view of the ranks' equal parts, which have more rows than the tensor
                copies[id(value)] = on_host(full) if keep else None
            return copies[id(value)]
        if isinstance(value, Tensor):
            if value.numel() == 0:  # empty tensors share the address 0
                return on_host(value.detach())
            place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            if place not in copies:
                copies[place] = on_host(value.detach())
            return copies[place]
        if isinstance(value, dict):
            return {key: copied(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(entry) for entry in value)
        return value

    with torch.no_grad():
        result = {key: copied(entry) for key, entry in state.items()}
    for device in devices:  # waits once for all of them
        torch.cuda.current_stream(device).synchronize()
    return result


class Writer:
    """Runs one function at a time in a thread; its error is raised by the next `start`, `check` or `wait`."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.job: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Runs `write` in the thread, after the function before has ended."""
        self.wait()
        self.pool = self.pool or ThreadPoolExecutor(1, "checkpoints")
        self.job = self.pool.submit(write)

    def check(self) -> None:
        """Raises the error of the last function if it has ended with one; does not wait for it."""
        if self.job is not None and self.job.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the function that runs, and raises its error."""
        job, self.job = self.job, None
        if job is not None:
            job.result()
