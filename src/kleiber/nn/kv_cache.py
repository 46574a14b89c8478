"""TODO."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Remembered:
    """Which of the positions that a cache holds are real: prompts of unequal length are padded on the left."""

    def __init__(self) -> None:
        self.real: Bool[Tensor, "batch keys"] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def remember(
        self, real: Bool[Tensor, "batch time"] | None, tokens: Int[Tensor, "batch time"]
    ) -> Bool[Tensor, "batch keys"] | None:
        """Adds what is about to be read and returns what is real of all of it; None where all of it is."""
        if self.real is None and real is None:
            return None
        rows, time = tokens.shape
        ones = torch.ones(rows, len(self), dtype=torch.bool, device=tokens.device)
        new = torch.ones(rows, time, dtype=torch.bool, device=tokens.device) if real is None else real
        self.real = torch.cat([ones if self.real is None else self.real, new], 1)
        return self.real


class Cache(Remembered):
    """Keys and values of the positions that one layer has seen, for decoding, in room for `length` of them.

    A step writes its own position and copies none of the others. Without a length, or beyond it, the room is doubled.
    """

    def __init__(self, length: int = 0) -> None:
        super().__init__()
        self.room, self.used = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return self.used

    def extend(
        self, keys: Float[Tensor, "batch heads time head_dim"], values: Float[Tensor, "batch heads time head_dim"]
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """All keys and values, those of this step included, as views of the room."""
        start, self.used = self.used, self.used + keys.shape[2]
        if self.keys is None or self.values is None or self.used > self.room:
            self._make_room(keys, start)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, start : self.used] = keys
        self.values[:, :, start : self.used] = values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def _make_room(self, like: Tensor, held: int) -> None:
        self.room = max(self.room, self.used if self.keys is None else 2 * self.used)
        old, shape = (self.keys, self.values), (*like.shape[:2], self.room, like.shape[3])
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        for new, before in zip((self.keys, self.values), old, strict=True):
            if before is not None:
                new[:, :, :held] = before[:, :, :held]
