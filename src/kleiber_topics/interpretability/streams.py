"""The residual stream of any model with a list of blocks: reading it after each block, and changing it.

Layer 0 is the input of the first block, layer L the output of block L. Hooks on the blocks do both, so the forward pass
is that of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kleiber.types import Batch, Model

Stream = Float[Tensor, "rows time dim"]
Change = Callable[[Tensor], Tensor]


def num_layers(model: Model) -> int:
    """Number of layers whose stream can be read, the input of the first block included."""
    return len(model.blocks) + 1


@torch.no_grad()
def read_streams(model: Model, batch: Batch) -> list[Stream]:
    """The residual stream at each layer, without the final norm."""
    streams: list[Tensor] = []

    def keep(stream: Tensor) -> Tensor:
        streams.append(stream)
        return stream

    with ExitStack() as stack:
        for layer in range(num_layers(model)):
            stack.enter_context(changed_stream(model, layer, keep))
        model(batch)
    return streams


@contextmanager
def changed_stream(model: Model, layer: int, change: Change) -> Iterator[None]:
    """While active, the residual stream at `layer` is replaced by `change` of it in every forward pass."""
    if layer == 0:
        handle = model.blocks[0].register_forward_pre_hook(
            lambda _, inputs, named: _with_input(inputs, named, change), with_kwargs=True
        )
    else:
        handle = _change_output(model.blocks[layer - 1], change)
    try:
        yield
    finally:
        handle.remove()


def _with_input(
    inputs: tuple[object, ...], named: dict[str, object], change: Change
) -> tuple[tuple[object, ...], dict[str, object]]:
    if inputs:
        return (change(cast(Tensor, inputs[0])), *inputs[1:]), named
    return inputs, {**named, "hidden_states": change(cast(Tensor, named["hidden_states"]))}


def _change_output(module: nn.Module, change: Change) -> RemovableHandle:
    def with_output(_: nn.Module, __: object, output: Tensor | tuple[object, ...]) -> Tensor | tuple[object, ...]:
        return change(output) if isinstance(output, Tensor) else (change(cast(Tensor, output[0])), *output[1:])

    return module.register_forward_hook(with_output)


@contextmanager
def changed_input(module: nn.Module, change: Change) -> Iterator[None]:
    """While active, the first input of a module is replaced by `change` of it."""
    handle = module.register_forward_pre_hook(lambda _, inputs: (change(cast(Tensor, inputs[0])), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed_output(module: nn.Module, change: Change) -> Iterator[None]:
    """While active, the output of a module, or the first of its outputs, is replaced by `change` of it."""
    handle = _change_output(module, change)
    try:
        yield
    finally:
        handle.remove()
