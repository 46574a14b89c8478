"""Mixing across positions: full attention, a sliding window, or none, with rotary positions.

A model builds the mask once per forward pass for all layers, and only where the kernel's causal flag is not enough.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.nn.mlp import RMSNorm
from kleiber.nn.mup import Site
from kleiber.types import Context, Positive, Width
from kleiber.types.model import Attention, LayerCache

CHUNK = 64  # queries that a CPU computes at once where no gradient is needed


class Rope(nn.Module):
    """Rotates channel pairs (i, i + head_dim/2) by position * theta^(-2i/head_dim), so that q.k depends on distance.

    The halves are paired, as in Hugging Face's Llama; the paper pairs neighbors. Su et al. 2021, arXiv:2104.09864,
    eq. 34. The tables are not saved, because they follow from (head_dim, context, theta).
    """

    cos: Float[Tensor, "context head_dim"]
    sin: Float[Tensor, "context head_dim"]

    def __init__(self, head_dim: int, context: int, theta: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(
                f"rotary positions need an even number of channels per head, not {head_dim}: change model.num_heads"
            )
        self.theta = theta
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        # The first half of sin carries the minus of the rotation, so that applying it is one roll and two products.
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], 1).float(), persistent=False)
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], 1).float(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch time heads head_dim"], start: int = 0
    ) -> Float[Tensor, "batch time heads head_dim"]:
        """Rotates x, whose first position is `start`, in the precision of x."""
        stop, half = start + x.shape[1], x.shape[-1] // 2
        cos, sin = (table[start:stop, None].to(x.dtype) for table in (self.cos, self.sin))
        return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin


class FullAttention(Attention):
    """softmax(scale q k^T) v over all positions of the segment, or where causal over those up to the query.

    num_heads     null: heads of 64 channels, or two heads below width 128
    num_kv_heads  null: num_heads; fewer share keys and values (Ainslie et al. 2023, arXiv:2305.13245)
    qk_norm       RMSNorm of queries and keys per head, which bounds the logits (Dehghani et al. 2023, arXiv:2302.05442)
    rotary        whether queries and keys are rotated by their positions; a causal model without also learns positions,
                  from how many keys a query has (Haviv et al. 2022, arXiv:2203.16634)
    """

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        num_kv_heads: Width | None = None,
        qk_norm: bool = True,
        rope_theta: Positive = 10000.0,
        rotary: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = heads(site.width, num_heads, num_kv_heads)
        self.causal = site.causal
        self.scale = site.parametrization.attention(self.head_dim)
        self.qkv = site.hidden(site.width, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim)
        self.out = site.projection(self.num_heads * self.head_dim)
        self.q_norm = RMSNorm(self.head_dim, site.norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, site.norm_eps) if qk_norm else None
        self.rope = Rope(self.head_dim, site.context, rope_theta) if rotary else None

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Bool[Tensor, "#batch 1 time keys"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The output to add to the residual stream. With a cache, `x` contains the positions after the cached ones."""
        batch, time, _ = x.shape
        past = len(cache) if cache is not None else 0
        q, k, v = self.project(x, past)
        if cache is not None:
            k, v = cache.extend(k, v)
        if mask is None and self.causal and past == 0:
            y = self._attend_causally(q, k, v)
        else:
            y = self._attend(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        shared = self.num_kv_heads != self.num_heads
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=self.scale, enable_gqa=shared)

    def _attend_causally(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of equally many queries and keys.

        In rows of up to 512 tokens the kernel for CPUs computes all pairs, also those that causality masks. Without a
        gradient, it therefore gets the queries in chunks, each with the keys up to its last query.
        """
        time = q.shape[2]
        if q.device.type != "cpu" or torch.is_grad_enabled() or time < 2 * CHUNK or torch.compiler.is_compiling():
            return self._attend(q, k, v, None, is_causal=True)
        chunks = [self._attend(q[:, :, :CHUNK], k[:, :, :CHUNK], v[:, :, :CHUNK], None, is_causal=True)]
        for start in range(CHUNK, time, CHUNK):
            stop = min(time, start + CHUNK)
            mask = _causal(stop - start, start, q.device)
            chunks.append(self._attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask))
        return torch.cat(chunks, 2)

    def project(self, x: Float[Tensor, "batch time dim"], past: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normalized and rotated by their positions, and values, each (batch, heads, time, head_dim).

        past  position of the first of x
        """
        batch, time, _ = x.shape
        q, k, v = (
            self.qkv(x)
            .view(batch, time, -1, self.head_dim)
            .split([self.num_heads, self.num_kv_heads, self.num_kv_heads], 2)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, past), self.rope(k, past)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mask(
        self,
        time: int,
        past: int,
        device: torch.device,
        real: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
    ) -> Bool[Tensor, "#batch 1 time keys"] | None:
        """See `Attention`. None where the kernel's causal flag suffices or nothing is masked.

        A single query after a cache reads every key, so it needs no mask either. Raises ValueError for segments
        together with a cache.
        """
        banded = self._band(time, past, device)
        if real is not None and segments is None and past == 0 and self.causal and _is_right_padded(real):
            real = None  # no token that is real may read the padding
        if real is None and segments is None:
            if banded is None and past > 0 and time > 1 and self.causal:
                return _causal(time, past, device)[None, None]
            return None if banded is None else banded[None, None]
        if past > 0 and segments is not None:
            raise ValueError("a cache holds one document per row: call the model without `segments`")
        allowed = banded if banded is not None else _causal(time, past, device) if self.causal else None
        allowed = torch.ones(time, past + time, dtype=torch.bool, device=device) if allowed is None else allowed
        allowed = allowed[None]
        if segments is not None:
            allowed = allowed & (segments[:, :, None] == segments[:, None, :])
        if real is not None:
            allowed = allowed & real[:, None, :]
        # A padded query reads itself: softmax over no keys is NaN, and the gradients would be NaN too.
        return (allowed | (_distance(time, past, device) == 0))[:, None]

    def _band(self, time: int, past: int, device: torch.device) -> Bool[Tensor, "time keys"] | None:
        """True where a query may read a key, (time, keys), for attention that reads less than all (causal) positions.

        None if it reads all of them; causality is then applied by the caller.
        """
        return None

    def flops(self, time: int) -> float:
        """4 FLOPs per channel and (query, key) pair that the mask allows, averaged over the positions of a row."""
        return 4.0 * self.num_heads * self.head_dim * ((time + 1) / 2 if self.causal else time)


class WindowAttention(FullAttention):
    """Attention to the last `window` positions (to `window` - 1 on either side where it is not causal).

    Child et al. 2019, arXiv:1904.10509; the window includes the query, as in Mistral (Jiang et al. 2023,
    arXiv:2310.06825).
    """

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        num_kv_heads: Width | None = None,
        qk_norm: bool = True,
        rope_theta: Positive = 10000.0,
        rotary: bool = True,
        window: Context = 64,
    ) -> None:
        super().__init__(site, num_heads, num_kv_heads, qk_norm, rope_theta, rotary)
        self.window = window

    def _band(self, time: int, past: int, device: torch.device) -> Bool[Tensor, "time keys"] | None:
        if past + time <= self.window:
            return None
        distance = _distance(time, past, device)
        near = distance.abs() < self.window
        return near & (distance >= 0) if self.causal else near

    def flops(self, time: int) -> float:
        pairs = sum(min(i + 1, self.window) for i in range(time))
        if not self.causal:
            pairs = 2 * pairs - time
        return 4.0 * self.num_heads * self.head_dim * pairs / time

    def executed_flops(self, time: int) -> float:
        """All pairs where rows are longer than the window, since the kernel then computes with a dense mask."""
        return super().flops(time) if time <= self.window else 4.0 * self.num_heads * self.head_dim * time


class NoMixing(Attention):
    """No mixing across positions: out(value(x)), attention in which every position reads itself only.

    A control that shows how much a model gains from context. Raises ValueError for options of attention, because this
    layer has no queries, keys or positions.
    """

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        num_kv_heads: Width | None = None,
        qk_norm: bool | None = None,
        rope_theta: Positive | None = None,
    ) -> None:
        super().__init__()
        if any(option is not None for option in (num_heads, num_kv_heads, qk_norm, rope_theta)):
            raise ValueError(
                "model/attention=none has no queries, keys or positions: remove from the model's options "
                f"{num_heads=}, {num_kv_heads=}, {qk_norm=}, {rope_theta=}"
            )
        self.value = site.hidden(site.width, site.width)
        self.out = site.projection(site.width)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The output to add to the residual stream. Ignores the mask; a cache only counts the positions."""
        if cache is not None:
            empty = x.new_empty(x.shape[0], 1, x.shape[1], 0)
            cache.extend(empty, empty)  # so that the cache knows its length
        return self.out(self.value(x))


def heads(width: int, num_heads: int | None, num_kv_heads: int | None) -> tuple[int, int, int]:
    """Number of query heads, number of key heads, and channels per head.

    Raises ValueError unless `num_heads` divides the width and `num_kv_heads` divides `num_heads`.

    num_heads  None: heads of 64 channels, or two heads below width 128
    """
    if num_heads is None:
        num_heads = 2 if width < 128 else width // 64
        if width % num_heads or (width >= 128 and width % 64):
            raise ValueError(
                f"model.width={width} must be a multiple of 64, or set model.num_heads to a divisor of the width"
            )
    if width % num_heads:
        raise ValueError(f"model.num_heads={num_heads} must divide model.width={width}")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads % num_kv_heads:
        raise ValueError(f"model.num_kv_heads={num_kv_heads} must divide model.num_heads={num_heads}")
    return num_heads, num_kv_heads, width // num_heads


def _distance(time: int, past: int, device: torch.device) -> Int[Tensor, "time keys"]:
    return torch.arange(past, past + time, device=device)[:, None] - torch.arange(past + time, device=device)


def _causal(time: int, past: int, device: torch.device) -> Bool[Tensor, "time keys"]:
    return cast(Tensor, _distance(time, past, device) >= 0)


def _is_right_padded(real: Bool[Tensor, "batch keys"]) -> bool:
    """Whether all padding is behind the real tokens of its row; False on a GPU, which would have to wait for it."""
    if real.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not bool((real[:, 1:] > real[:, :-1]).any())
