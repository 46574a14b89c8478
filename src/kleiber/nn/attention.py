"""Softmax attention over all positions (over a sliding window: `nn.window`).

A model builds the mask once per forward pass for all layers of a kind, and only where the kernel's causal flag is not
enough.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.nn.mlp import RMSNorm
from kleiber.nn.mup import Site, heads
from kleiber.nn.positions import Alibi, Positions, last_positions, rope
from kleiber.nn.precision import autocast_dtype, without_autocast
from kleiber.types import Json, Positive, Width
from kleiber.types.batch import Role
from kleiber.types.model import Attention, LayerCache, Mask

CHUNK = 64  # queries that a CPU computes at once where no gradient is needed
SLOW_IN_BF16 = 32  # channels of a head up to which the kernel for CPUs is slower in bf16 than in fp32
SPARSE = 512  # tokens of a row from which a GPU skips masked blocks (`nn.flex`)


class FullAttention(Attention):
    """softmax(cap(scale q k^T) + bias) v over all positions of the segment, or where causal over those up to the query.

    num_heads     null: heads of 64 channels, or two heads below width 128
    num_kv_heads  null: num_heads; fewer share keys and values (Ainslie et al. 2023, arXiv:2305.13245)
    qk_norm       RMSNorm of queries and keys per head, which bounds the logits (Dehghani et al. 2023, arXiv:2302.05442)
    rope_theta    base of the periods of rotary positions; null: 10,000
    positions     `rotary`: queries and keys are rotated by their positions; `alibi`: a bias falls with the distance
                  (Press et al. 2021, arXiv:2108.12409); `none`: a causal model then learns positions from how many keys
                  a query has (Haviv et al. 2022, arXiv:2203.16634)
    soft_cap      bound of the logits, cap(x) = soft_cap tanh(x / soft_cap), or null (Gemma 2, arXiv:2408.00118)
    value_residual  values are a v_1 + b v with the values v_1 of the first layer and learned a and b, which start at
                  1/2 (Zhou et al. 2024, arXiv:2410.17897, learnable ResFormer)
    prefix        the tokens of a prompt read all of it, and only what follows reads causally (Dong et al. 2019,
                  arXiv:1905.03197; Raffel et al. 2020, arXiv:1910.10683, "prefix LM"); the kernel then gets a mask
    """

    head_multiple = 1
    rotates_heads = True

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
        prefix: bool = False,
    ) -> None:
        super().__init__()
        if prefix and not site.causal:
            raise ValueError("model.attention.prefix=true needs model.causal=true: without it all tokens are read")
        self.prefix = prefix
        self.num_heads, self.num_kv_heads, self.head_dim = heads(site.width, num_heads, num_kv_heads)
        self.causal, self.soft_cap, self.shares_values = site.causal, soft_cap, value_residual
        self.scale = site.parametrization.attention(self.head_dim)
        self.qkv = site.hidden(site.width, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim)
        self.out = site.projection(self.num_heads * self.head_dim)
        self.q_norm = RMSNorm(self.head_dim, site.norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, site.norm_eps) if qk_norm else None
        self.rope = rope(site, self.head_dim, rope_theta, positions)
        self.alibi = Alibi(self.num_heads) if positions == "alibi" else None
        mixes = value_residual and site.layer > 0
        self.value_weights = nn.Parameter(torch.full((2,), 0.5)) if mixes else None

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Mask | None = None,
        cache: LayerCache | None = None,
        first_values: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The output to add to the residual stream. With a cache, `x` contains the positions after the cached ones."""
        batch, time, _ = x.shape
        past = len(cache) if cache is not None else 0
        q, k, v = self.read(x, past, cache, first_values)
        if mask is None and self.causal and past == 0:
            y = self._attend_causally(q, k, v)
        else:
            y = self._attend(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))

    def read(
        self, x: Tensor, past: int, cache: LayerCache | None, first_values: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, and keys and values of all positions, those of the cache included."""
        q, k, v = self.project(x, past, first_values)
        return (q, k, v) if cache is None else (q, *cache.extend(k, v))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, is_causal: bool = False) -> Tensor:
        """Attention of queries that are the last positions of the keys."""
        if self.alibi is not None or self.soft_cap is not None:
            return self._attend_with_bias(q, k, v, mask, is_causal)
        shared = self.num_kv_heads != self.num_heads
        if mask is not None and not isinstance(mask, Tensor):
            from kleiber.nn.flex import attend

            return attend(q, k, v, mask, self.scale, shared)
        if self.head_dim > SLOW_IN_BF16 or q.device.type != "cpu" or autocast_dtype(q.device) is None:
            return F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=is_causal, scale=self.scale, enable_gqa=shared
            )
        with without_autocast(q.device):
            parts, settings = (q.float(), k.float(), v.float()), {"scale": self.scale, "enable_gqa": shared}
            return F.scaled_dot_product_attention(*parts, mask, is_causal=is_causal, **settings).to(v.dtype)

    def _attend_with_bias(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        """As `_attend`, with a bias that the kernel adds, or with all logits in memory where they are capped."""
        at = last_positions(q.shape[2], k.shape[2], q.device)
        if is_causal:
            mask = at[:, None] >= torch.arange(k.shape[2], device=q.device)
        if self.soft_cap is not None:
            logits = self.logits(q, k, at)
            logits = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
            return logits.softmax(-1).to(v.dtype) @ v.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
        assert self.alibi is not None
        bias = self.alibi(at, k.shape[2]).to(q.dtype)
        bias = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        shared = self.num_kv_heads != self.num_heads
        bias = bias.expand(len(q), -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, bias, scale=self.scale, enable_gqa=shared)

    def logits(
        self, q: Float[Tensor, "batch heads queries head_dim"], k: Tensor, at: Int[Tensor, "_"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The logits of queries at the positions `at` as they enter the softmax, before any mask.

        q, k  from `project`; keys are those of the positions 0, 1, ...
        """
        logits = self.scale * (q @ k.repeat_interleave(self.num_heads // self.num_kv_heads, 1).transpose(2, 3))
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits if self.alibi is None else logits + self.alibi(at, k.shape[2]).to(logits.dtype)

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

    def project(
        self, x: Float[Tensor, "batch time dim"], past: int = 0, first_values: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normalized and rotated by their positions, and values, each (batch, heads, time, head_dim).

        past          position of the first of x
        first_values  see `Attention.forward`; None leaves the values of this layer as they are
        """
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_dim)
        q, k, v = qkv.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, past), self.rope(k, past)
        v = v.transpose(1, 2)
        if first_values is not None and self.shares_values:
            v = self._mix_values(v, first_values)
        return q.transpose(1, 2), k.transpose(1, 2), v

    def _mix_values(self, v: Tensor, first_values: list[Tensor]) -> Tensor:
        """The values of this layer mixed with those of the first one, which the first layer stores."""
        if self.value_weights is None:
            first_values.append(v)
            return v
        if not first_values:
            raise ValueError(
                "model.attention.value_residual=true needs values of the first layer, which has none: let "
                "model.attention.pattern begin with full or window"
            )
        return self.value_weights[0] * first_values[0] + self.value_weights[1] * v

    def roles(self) -> dict[str, Role]:
        return {} if self.value_weights is None else {"value_weights": Role("vector", 1)}

    def mask(
        self,
        time: int,
        past: int,
        device: torch.device,
        real: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        prompt: Bool[Tensor, "batch time"] | None = None,
    ) -> Mask | None:
        """See `Attention`. None where the kernel's causal flag suffices or nothing is masked.

        A single query after a cache reads every key, so it needs no mask either. Raises ValueError for segments, and
        for a prompt, after a cache.
        """
        prompt = prompt if self.prefix else None
        if prompt is not None and past > 0:
            raise ValueError("a model with model.attention.prefix=true reads a prompt in one pass, not after a cache")
        banded = self._band(time, past, device)
        if real is not None and segments is None and past == 0 and self.causal and _is_right_padded(real):
            real = None  # no token that is real may read the padding
        if real is None and segments is None and prompt is None:
            if banded is None and past > 0 and time > 1 and self.causal:
                return _causal(time, past, device)[None, None]
            return None if banded is None else banded[None, None]
        if past > 0 and segments is not None:
            raise ValueError("a cache holds one document per row: call the model without `segments`")
        if self._skips_blocks(time, past, device):
            from kleiber.nn.flex import block_mask

            return block_mask(self.causal, time, device, real, segments, prompt)
        allowed = banded if banded is not None else _causal(time, past, device) if self.causal else None
        allowed = torch.ones(time, past + time, dtype=torch.bool, device=device) if allowed is None else allowed
        allowed = allowed[None]
        if prompt is not None:
            allowed = allowed | (prompt[:, :, None] & prompt[:, None, :])
        if segments is not None:
            allowed = allowed & (segments[:, :, None] == segments[:, None, :])
        if real is not None:
            allowed = allowed & real[:, None, :]
        # A padded query reads itself: softmax over no keys is NaN, and the gradients would be NaN too.
        return (allowed | (distances(time, past, device) == 0))[:, None]

    def _skips_blocks(self, time: int, past: int, device: torch.device) -> bool:
        """Whether a kernel that skips masked blocks computes rows: where a GPU trains, without a bias on the logits."""
        plain = type(self) is FullAttention and self.alibi is None and self.soft_cap is None and self.head_dim >= 16
        return plain and device.type == "cuda" and torch.is_grad_enabled() and past == 0 and time >= SPARSE

    def _band(self, time: int, past: int, device: torch.device) -> Bool[Tensor, "time keys"] | None:
        """True where a query may read a key, (time, keys), for attention that reads less than all (causal) positions.

        None if it reads all of them; causality is then applied by the caller.
        """
        return None

    def flops(self, time: int) -> float:
        """4 FLOPs per channel and (query, key) pair that the mask allows, averaged over the positions of a row."""
        return 4.0 * self.num_heads * self.head_dim * self.pairs(time)

    def pairs(self, time: int) -> float:
        """Mean number of keys that a query in a row of `time` tokens may read."""
        return (time + 1) / 2 if self.causal else float(time)

    def executed_flops(self, time: int) -> float:
        """All pairs of a row where the kernel gets a bias or a mask, or where logits are capped."""
        dense = self.alibi is not None or self.soft_cap is not None or self.prefix
        return self.flops(time) * (time / self.pairs(time) if dense else 1.0)

    def settings(self) -> Json:
        """See `Attention`."""
        positions = "rotary" if self.rope else "alibi" if self.alibi else "none"
        values: Json = {"model.num_heads": self.num_heads, "model.num_kv_heads": self.num_kv_heads}
        values |= {"model.rope_theta": self.rope.theta} if self.rope else {}
        values |= {"model.positions": positions, "model.attention.soft_cap": self.soft_cap}
        return values | {"model.attention.value_residual": self.shares_values, "model.attention.prefix": self.prefix}


def distances(time: int, past: int, device: torch.device) -> Int[Tensor, "time keys"]:
    """How many positions each of `time` queries after `past` ones is behind each key."""
    return torch.arange(past, past + time, device=device)[:, None] - torch.arange(past + time, device=device)


def _causal(time: int, past: int, device: torch.device) -> Bool[Tensor, "time keys"]:
    return cast(Tensor, distances(time, past, device) >= 0)


def _is_right_padded(real: Bool[Tensor, "batch keys"]) -> bool:
    """Whether all padding is behind the real tokens of its row; False on a GPU, which would have to wait for it."""
    if real.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not bool((real[:, 1:] > real[:, :-1]).any())
