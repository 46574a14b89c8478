"""Keys and values, or states, of the layers of a Transformer while it decodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.types.batch import Batch
from kleiber.types.model import Adjust, DecodingCache, Model


class KeyValueCache(DecodingCache):
    """One `Cache` per layer, for rows of `length` tokens."""

    def __init__(self, depth: int, length: int) -> None:
        super().__init__()
        self.layers = [Cache(length) for _ in range(depth)]

    def __len__(self) -> int:
        return len(self.layers[0])

    def tensors(self) -> list[Tensor]:
        return [tensor for cache in self.layers for tensor in cache.tensors()]

    def select(self, rows: Int[Tensor, "_"], length: int) -> KeyValueCache:
        """Keeps the rows of these numbers, in that order."""
        selected = KeyValueCache(len(self.layers), length)
        selected.layers = [cache.select(rows, length) for cache in self.layers]
        selected.real = None if self.real is None else self.real[rows]
        return selected

    def reorder(self, rows: Int[Tensor, "_"], length: int, shared: int) -> KeyValueCache:
        """See `DecodingCache`. Copies what differs between the rows, within the buffers."""
        for cache in self.layers:
            cache.reorder(rows, shared)
        return self


class Cache:
    """What one layer keeps while decoding: keys and values in buffers for `length` positions, or a `state`.

    A step writes only its new positions. Buffers that are full are replaced by ones of twice the size.

    state  tensors of fixed size, each with the rows of the batch first; empty for a layer that keeps keys and values
    """

    def __init__(self, length: int = 0) -> None:
        self.capacity, self.used = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.state: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return self.used

    def tensors(self) -> list[Tensor]:
        """Everything that the layer keeps; empty before the first step."""
        return [*(tensor for tensor in (self.keys, self.values) if tensor is not None), *self.state]

    def extend(
        self, keys: Float[Tensor, "batch heads time key_dim"], values: Float[Tensor, "batch heads time value_dim"]
    ) -> tuple[Float[Tensor, "batch heads keys key_dim"], Float[Tensor, "batch heads keys value_dim"]]:
        """Adds the keys and values of new positions; returns those of all positions, as views."""
        start, self.used = self.used, self.used + keys.shape[2]
        if self.keys is None or self.values is None or self.used > self.capacity:
            self._grow(keys, values, start)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, start : self.used] = keys
        self.values[:, :, start : self.used] = values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def advance(self, state: Sequence[Tensor], time: int) -> None:
        """Replaces the state by that after `time` more positions."""
        self.state, self.used = state, self.used + time

    def select(self, rows: Int[Tensor, "_"], length: int) -> Cache:
        """A cache for `length` positions with the rows of these numbers."""
        selected = Cache(length)
        if self.keys is not None and self.values is not None:
            selected.extend(self.keys[rows, :, : self.used], self.values[rows, :, : self.used])
        selected.state, selected.used = [tensor[rows] for tensor in self.state], self.used
        return selected

    def reorder(self, rows: Int[Tensor, "_"], shared: int) -> None:
        """Puts the rows of these numbers in the places of all rows; their first `shared` positions are equal."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[:, :, shared : self.used] = buffer[rows, :, shared : self.used]
        self.state = [tensor[rows] for tensor in self.state]

    def _grow(self, keys: Tensor, values: Tensor, length: int) -> None:
        """New buffers that hold all positions, with the first `length` ones copied from the old buffers."""
        self.capacity = max(self.capacity, self.used if self.keys is None else 2 * self.used)
        old = (self.keys, self.values)
        self.keys, self.values = (x.new_empty((*x.shape[:2], self.capacity, x.shape[3])) for x in (keys, values))
        for new, previous in zip((self.keys, self.values), old, strict=True):
            if previous is not None:
                new[:, :, :length] = previous[:, :, :length]


@torch.compiler.set_stance("force_eager")  # a compiled model would be compiled again at every length
@torch.inference_mode()
def next_logits(
    model: Model, batch: Batch, caches: DecodingCache, adjust: Adjust | None = None
) -> Float[Tensor, "batch vocab"]:
    """The logits of the token after each row, in fp32."""
    hidden = model(batch, caches).hidden[:, -1]
    logits = model.head(hidden).float()
    return logits if adjust is None else adjust(hidden, logits)
