"""The residual stream of any model with a list of blocks: reading it after each block, and changing it.

Layer 0 is the input of the first block, layer L the output of block L. Hooks on the blocks do both, so the forward pass
is that of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kleiber.types.batch import Batch
from kleiber.types.model import Model

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

    with hooked([changed_stream(model, layer, keep) for layer in range(num_layers(model))]):
        model(batch)
    return streams


def changed_stream(model: Model, layer: int, change: Change) -> RemovableHandle:
    """A context in which the residual stream at `layer` is replaced by `change` of it in every forward pass."""
    if layer > 0:
        return changed_output(model.blocks[layer - 1], change)
    return model.blocks[0].register_forward_pre_hook(
        lambda _, inputs, named: _with_input(inputs, named, change), with_kwargs=True
    )


def _with_input(
    inputs: tuple[object, ...], named: dict[str, object], change: Change
) -> tuple[tuple[object, ...], dict[str, object]]:
    if inputs:
        return (change(cast(Tensor, inputs[0])), *inputs[1:]), named
    return inputs, {**named, "hidden_states": change(cast(Tensor, named["hidden_states"]))}


def changed_output(module: nn.Module, change: Change) -> RemovableHandle:
    """A context in which the output of a module, or the first of its outputs, is replaced by `change` of it."""

    def with_output(_: nn.Module, __: object, output: Tensor | tuple[object, ...]) -> Tensor | tuple[object, ...]:
        return change(output) if isinstance(output, Tensor) else (change(cast(Tensor, output[0])), *output[1:])

    return module.register_forward_hook(with_output)


def changed_input(module: nn.Module, change: Change) -> RemovableHandle:
    """A context in which the first input of a module is replaced by `change` of it."""
    return module.register_forward_pre_hook(lambda _, inputs: (change(cast(Tensor, inputs[0])), *inputs[1:]))


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """A context at whose end the hooks are removed."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
