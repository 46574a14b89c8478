"""Multi-head latent attention: keys and values of all heads are computed from one short vector per token."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kleiber.nn.attention import FullAttention
from kleiber.nn.mlp import RMSNorm
from kleiber.nn.mup import Site, heads
from kleiber.nn.positions import Alibi, Positions, rope
from kleiber.types import Json, Positive, Width
from kleiber.types.model import Attention, LayerCache


class LatentAttention(FullAttention):
    """Attention whose cache holds a latent vector and one rotated key per token, in place of keys and values of heads.

    A head of d channels has queries and keys of d channels without positions, followed by d/2 rotated channels, whose
    keys all heads share. DeepSeek-AI 2024 (DeepSeek-V2), arXiv:2405.04434, section 2.1.

    num_heads   null: heads of 64 channels, or two heads below width 128
    rank        channels of the latent vector; null: width / 4
    query_rank  channels of a latent vector of the queries; null: none
    positions, soft_cap  as in `FullAttention`

    Raises ValueError for `num_kv_heads` and `qk_norm`, because heads share the latent vector, which is normalized.
    """

    head_multiple = 4
    refused_options = ("num_kv_heads", "qk_norm", "value_residual")
    refused_because = "latent has one normalized latent vector for all heads"

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        rank: Width | None = None,
        query_rank: Width | None = None,
        rope_theta: Positive | None = None,
        positions: Positions = "rotary",
        soft_cap: Positive | None = None,
        num_kv_heads: Width | None = None,
        qk_norm: bool | None = None,
    ) -> None:
        Attention.__init__(self)
        if num_kv_heads is not None or qk_norm is not None:
            raise ValueError(
                "model/attention=latent has one latent vector for all heads, and normalizes it: remove from the "
                f"model's options {num_kv_heads=}, {qk_norm=}"
            )
        self.num_heads, self.num_kv_heads, self.head_dim = heads(site.width, num_heads, None)
        if self.head_dim % 4:
            raise ValueError(f"model/attention=latent needs heads of a multiple of 4 channels, not {self.head_dim}")
        self.rotary_dim, self.rank = self.head_dim // 2, rank or max(1, site.width // 4)
        self.query_rank, self.causal, self.soft_cap = query_rank, site.causal, soft_cap
        self.q_norm = self.k_norm = self.value_weights = None
        size = self.head_dim + self.rotary_dim
        self.scale = site.parametrization.attention(size)
        self.query_down = None if query_rank is None else site.hidden(site.width, query_rank)
        self.query_norm = None if query_rank is None else RMSNorm(query_rank, site.norm_eps)
        self.query = site.hidden(query_rank or site.width, self.num_heads * size)
        self.down = site.hidden(site.width, self.rank + self.rotary_dim)
        self.norm = RMSNorm(self.rank, site.norm_eps)
        self.up = site.hidden(self.rank, self.num_heads * 2 * self.head_dim)
        self.out = site.projection(self.num_heads * self.head_dim)
        self.rope = rope(site, self.rotary_dim, rope_theta, positions)
        self.alibi = Alibi(self.num_heads) if positions == "alibi" else None

    def read(
        self, x: Tensor, past: int, cache: LayerCache | None, first_values: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, and keys and values of all positions, computed from what the cache holds."""
        q, latent, rotated = self._compress(x, past)
        if cache is not None:
            latent, rotated = cache.extend(latent, rotated)
        return q, *self._expand(latent, rotated)

    def project(
        self, x: Float[Tensor, "batch time dim"], past: int = 0, first_values: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (batch, heads, time, 3/2 head_dim), and values (batch, heads, time, head_dim)."""
        q, latent, rotated = self._compress(x, past)
        return q, *self._expand(latent, rotated)

    def _compress(self, x: Tensor, past: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and what the cache holds: latent vectors (batch, 1, time, rank), and the keys that heads share."""
        batch, time, _ = x.shape
        y = x if self.query_down is None or self.query_norm is None else self.query_norm(self.query_down(x))
        q = self.query(y).view(batch, time, self.num_heads, -1)
        plain, turned = q.split([self.head_dim, self.rotary_dim], -1)
        latent, key = self.down(x).unsqueeze(2).split([self.rank, self.rotary_dim], -1)
        if self.rope is not None:
            turned, key = self.rope(turned, past), self.rope(key, past)
        q = torch.cat([plain, turned], -1).transpose(1, 2)
        return q, self.norm(latent).transpose(1, 2), key.transpose(1, 2)

    def _expand(self, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads."""
        batch, _, time, _ = latent.shape
        expanded = self.up(latent.squeeze(1)).view(batch, time, self.num_heads, 2 * self.head_dim)
        k, v = expanded.transpose(1, 2).chunk(2, -1)
        return torch.cat([k, rotated.expand(-1, self.num_heads, -1, -1)], -1), v

    def flops(self, time: int) -> float:
        """2 FLOPs per channel of a key and of a value, and (query, key) pair that the mask allows."""
        return 2.0 * self.num_heads * (2 * self.head_dim + self.rotary_dim) * self.pairs(time)

    def executed_flops(self, time: int) -> float:
        """All pairs of a row: kernels for causal rows need keys and values of equal size."""
        return self.flops(time) * time / self.pairs(time)

    def settings(self) -> Json:
        positions = "rotary" if self.rope else "alibi" if self.alibi else "none"
        values: Json = {"model.num_heads": self.num_heads, "model.attention.rank": self.rank}
        values |= {"model.attention.query_rank": self.query_rank, "model.attention.soft_cap": self.soft_cap}
        return values | {"model.positions": positions} | ({"model.rope_theta": self.rope.theta} if self.rope else {})
