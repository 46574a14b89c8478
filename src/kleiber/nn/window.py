"""Softmax attention over a sliding window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from kleiber.nn.attention import CHUNK, FullAttention, distances
from kleiber.nn.mup import Site
from kleiber.nn.positions import Positions
from kleiber.types import Context, Json, Positive, Width
from kleiber.types.model import Mask

LONG = 1024  # tokens of a row from which it is computed in chunks of queries


class WindowAttention(FullAttention):
    """Attention to the last `window` positions (to `window` - 1 on either side where it is not causal).

    Child et al. 2019, arXiv:1904.10509; the window includes the query, as in Mistral (Jiang et al. 2023,
    arXiv:2310.06825). Other arguments are those of `FullAttention`.
    """

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        num_kv_heads: Width | None = None,
        qk_norm: bool = True,
        rope_theta: Positive | None = None,
        positions: Positions = "rotary",
        soft_cap: Positive | None = None,
        value_residual: bool = False,
        window: Context = 64,
    ) -> None:
        super().__init__(site, num_heads, num_kv_heads, qk_norm, rope_theta, positions, soft_cap, value_residual)
        self.window = self.mask_key = window
        self.chunk = max(window, CHUNK)

    def mask(
        self,
        time: int,
        past: int,
        device: torch.device,
        real: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        prompt: Bool[Tensor, "batch time"] | None = None,
    ) -> Mask | None:
        """See `FullAttention`. Of long rows in training the mask of each chunk: (#batch, chunks, queries, keys).

        The keys of a chunk are those of the chunk before it and its own.
        """
        if not self._in_chunks(time, past):
            return super().mask(time, past, device, real, segments, prompt)
        positions = torch.arange(-(-time // self.chunk) * self.chunk, device=device)[None]
        at, keys = positions.unflatten(1, (-1, self.chunk)), self._with_previous(positions)
        distance = at[..., None] - keys[..., None, :]
        distance[:, :1, :, : self.chunk] = -1  # the first chunk has none before it
        allowed = (distance >= 0) & (distance < self.window)
        if segments is not None:
            segments = F.pad(segments, (0, positions.shape[1] - time), value=-1)
            of_query = segments.unflatten(1, (-1, self.chunk))
            allowed = allowed & (of_query[..., None] == self._with_previous(segments)[..., None, :])
        if real is not None:
            real = F.pad(real, (0, positions.shape[1] - time))
            allowed = allowed & self._with_previous(real)[..., None, :]
        return allowed | (distance == 0)

    def _in_chunks(self, time: int, past: int) -> bool:
        """Whether rows are computed in chunks, which takes less time and memory than a mask of all pairs."""
        return self.causal and past == 0 and time >= max(LONG, 4 * self.chunk) and torch.is_grad_enabled()

    def _with_previous(self, x: Tensor) -> Tensor:
        """Positions (batch, time, ...) in chunks, each after the one before it: (batch, chunks, 2 chunk, ...)."""
        chunks = x.unflatten(1, (-1, self.chunk))
        return torch.cat([torch.cat([torch.zeros_like(chunks[:, :1]), chunks[:, :-1]], 1), chunks], 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, is_causal: bool = False) -> Tensor:
        """See `FullAttention`; of the chunks of a row as of rows of their own, where the mask is one of chunks."""
        if mask is None or mask.shape[2] == q.shape[2]:
            return super()._attend(q, k, v, mask, is_causal)
        batch, time, count = len(q), q.shape[2], mask.shape[1]
        q, k, v = (F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, count * self.chunk - time)) for x in (q, k, v))
        q = q.reshape(batch * count, self.chunk, *q.shape[2:])
        k, v = (self._with_previous(x).flatten(0, 1).transpose(1, 2) for x in (k, v))
        mask = mask.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
        y = super()._attend(q.transpose(1, 2), k, v, mask)
        return y.transpose(1, 2).reshape(batch, count * self.chunk, *y.shape[1::2]).transpose(1, 2)[:, :, :time]

    def _band(self, time: int, past: int, device: torch.device) -> Bool[Tensor, "time keys"] | None:
        if past + time <= self.window:
            return None
        distance = distances(time, past, device)
        near = distance.abs() < self.window
        return near & (distance >= 0) if self.causal else near

    def pairs(self, time: int) -> float:
        pairs = sum(min(i + 1, self.window) for i in range(time))
        return (pairs if self.causal else 2 * pairs - time) / time

    def executed_flops(self, time: int) -> float:
        """All pairs where rows are longer than the window, or those of two chunks where they are long."""
        if time <= self.window:
            return super().executed_flops(time)
        keys = 2 * self.chunk if self.causal and time >= max(LONG, 4 * self.chunk) else time
        return self.flops(time) * keys / self.pairs(time)

    def settings(self) -> Json:
        return super().settings() | {"model.attention.window": self.window}
