"""Linear attention with the gated delta rule, whose state of fixed size replaces the keys and values of all tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.nn.mlp import RMSNorm
from kleiber.nn.mup import Site, heads
from kleiber.nn.precision import without_autocast
from kleiber.types import Count, Json, Positive, Width
from kleiber.types.batch import Role
from kleiber.types.model import Attention, Layer, LayerCache

EPS = 1e-6  # added to the squared length of queries and keys


class GatedDeltaNet(Attention):
    """Recurrent attention of linear cost, with a short convolution, forgetting, and corrections in place of additions.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, y_t = norm(S_t^T q_t) silu(z_t), with queries, keys and
    values from a causal convolution over the last `taps` positions, q and k of length 1, forgetting a in (0, 1) and
    strength b in (0, 1). Yang et al. 2024, arXiv:2412.06464, eq. 10 and figure 1. Causal, without positions; packed
    documents are refused.

    num_heads  null: heads of 64 channels, or two heads below width 128
    taps       positions of the convolution, itself included
    chunk      positions that are computed at once; changes the speed alone

    Raises ValueError for a bidirectional model, and for `num_kv_heads`, `qk_norm`, `rope_theta` and `positions`.
    """

    is_recurrent = True
    head_multiple = 1
    refused_options = ("num_kv_heads", "qk_norm", "rope_theta", "positions")
    refused_because = "delta has a state in place of keys and positions"

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        taps: Count = 4,
        chunk: Count = 64,
        num_kv_heads: Width | None = None,
        qk_norm: bool | None = None,
        rope_theta: Positive | None = None,
        positions: str | None = None,
    ) -> None:
        super().__init__()
        options = {"num_kv_heads": num_kv_heads, "qk_norm": qk_norm, "rope_theta": rope_theta, "positions": positions}
        asked = ", ".join(f"model.{name}={value}" for name, value in options.items() if value is not None)
        if asked or not site.causal:
            raise ValueError(
                f"model/attention=delta is causal and has no such options: remove {asked or 'model.causal=false'}"
            )
        self.num_heads, _, self.head_dim = heads(site.width, num_heads, None)
        self.taps, self.chunk = taps, chunk
        self.qkv = site.hidden(site.width, 3 * site.width)
        self.convolution = Convolution(3 * site.width, taps)
        self.gates = site.hidden(site.width, 2 * self.num_heads)
        self.z = site.hidden(site.width, site.width)
        self.norm = RMSNorm(self.head_dim, site.norm_eps)
        self.out = site.projection(site.width)
        # As in Mamba 2 (Dao and Gu 2024, arXiv:2405.21060): a is exp(-rate softplus(x + bias)), .2 to .999 at first.
        self.log_rate = nn.Parameter(torch.empty(self.num_heads).uniform_(1, 16).log())
        step = torch.empty(self.num_heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Bool[Tensor, "batch 1 1 time"] | None = None,
        cache: LayerCache | None = None,
        first_values: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The output to add to the residual stream.

        mask   False on padding, which writes nothing into the state (padding behind a row lets it decay)
        cache  the last inputs of the convolution, and the state
        """
        batch, time, _ = x.shape
        if mask is not None:
            x = x * mask[:, 0, 0, :, None]
        tail, state = cache.state if cache is not None and len(cache) > 0 else (None, None)
        mixed, tail = self.convolution(self.qkv(x), tail)
        q, k, v = (part.view(batch, time, self.num_heads, -1).transpose(1, 2) for part in mixed.chunk(3, -1))
        strength, rate = self.gates(x).float().view(batch, time, 2, -1).permute(2, 0, 3, 1)
        log_decay = -self.log_rate.float().exp()[:, None] * F.softplus(rate + self.bias.float()[:, None])
        with without_autocast(x.device):  # the state adds up errors of all positions
            y, state = delta_rule(_unit(q), _unit(k), v, log_decay, strength.sigmoid(), state, self.chunk)
        if cache is not None:
            cache.advance((tail, state), time)
        y = self.norm(y.transpose(1, 2).to(x.dtype)).reshape(batch, time, -1)
        return self.out(y * F.silu(self.z(x)))

    def mask(
        self,
        time: int,
        past: int,
        device: torch.device,
        real: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        prompt: Bool[Tensor, "batch time"] | None = None,
    ) -> Bool[Tensor, "batch 1 1 time"] | None:
        """Which of the positions are no padding. Raises ValueError for packed segments."""
        if segments is not None:
            raise ValueError(
                "model/attention=delta reads on across the documents that this data packs into a row: set "
                "data.pack=false, or use model/attention=full"
            )
        return None if real is None else real[:, None, None, past:]

    def roles(self) -> dict[str, Role]:
        return {"log_rate": Role("vector", 1), "bias": Role("vector", 1)}

    def flops(self, time: int) -> float:
        """Three products of the state with a vector for each token and head: reading twice and writing."""
        return 6.0 * self.num_heads * self.head_dim**2

    def executed_flops(self, time: int) -> float:
        """The recurrence, and for all pairs of a chunk three products and the solution of two triangular systems."""
        size, padded = self._chunks(time)
        return padded * self.num_heads * (6.0 * self.head_dim**2 + 8.0 * self.head_dim * size)

    def executed_backward_flops(self, time: int) -> float:
        """Two gradients of each product; those of the systems solve them again and multiply the solutions.

        The state before the first chunk and that behind the last one have no gradient.
        """
        size, padded = self._chunks(time)
        ends = 8.0 * self.head_dim**2 * size / time
        return self.num_heads * (padded * (12.0 * self.head_dim**2 + 18.0 * self.head_dim * size) - ends)

    def _chunks(self, time: int) -> tuple[int, float]:
        """Returns the positions of a chunk, and the computed positions over those of a row, which is padded."""
        size = min(self.chunk, time)
        return size, -(-time // size) * size / time

    def settings(self) -> Json:
        return {"model.num_heads": self.num_heads, "model.attention.taps": self.taps}


class Convolution(Layer):
    """silu of a causal convolution over the last `taps` positions, each channel by itself."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps).uniform_(-(taps**-0.5), taps**-0.5))

    def forward(
        self, x: Float[Tensor, "batch time channels"], tail: Float[Tensor, "batch before channels"] | None = None
    ) -> tuple[Float[Tensor, "batch time channels"], Float[Tensor, "batch before channels"]]:
        """The outputs, and the inputs of the last `taps` - 1 positions, which the next positions read as `tail`."""
        before = self.weight.shape[1] - 1
        tail = x.new_zeros(len(x), before, x.shape[2]) if tail is None else tail
        whole = torch.cat([tail, x], 1)
        y = F.conv1d(whole.transpose(1, 2), self.weight[:, None].to(x.dtype), groups=x.shape[2])
        return F.silu(y).transpose(1, 2), whole[:, whole.shape[1] - before :]

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("vector", 1)}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel()


def _unit(x: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch heads time head_dim"]:
    """Vectors of length 1, in fp32."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def delta_rule(
    q: Float[Tensor, "batch heads time keys"],
    k: Float[Tensor, "batch heads time keys"],
    v: Float[Tensor, "batch heads time values"],
    log_decay: Float[Tensor, "batch heads time"],
    strength: Float[Tensor, "batch heads time"],
    state: Float[Tensor, "batch heads keys values"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Tensor, "batch heads time values"], Float[Tensor, "batch heads keys values"]]:
    """y_t = S_t^T q_t / sqrt(keys) with S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, and the last S.

    The positions of a chunk are computed at once: their corrections of the state solve a triangular system, after which
    only the state passes from chunk to chunk. Yang et al. 2024, arXiv:2412.06464, eq. 12 to 16.

    log_decay  log of a_t
    strength   b_t
    state      S before the first position; None: zeros
    """
    time, size = q.shape[2], min(chunk, q.shape[2])
    padding = -time % size
    v = v.to(q.dtype)
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, size)) for x in (q / q.shape[3] ** 0.5, k, v))
    log_decay, b = (F.pad(x.to(q.dtype), (0, padding)).unflatten(2, (-1, size)) for x in (log_decay, strength))
    total = log_decay.cumsum(-1)
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf).exp()
    system = (b[..., None] * k) @ k.transpose(-1, -2) * decay
    # The diagonal is taken as 1: a position corrects the state for those before it in its chunk.
    right = torch.cat([b[..., None] * v, (b * total.exp())[..., None] * k], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    writes, reads = solved.split([v.shape[-1], k.shape[-1]], -1)
    pairs = q @ k.transpose(-1, -2) * decay
    decayed_q, last = q * total.exp()[..., None], total[..., -1:]
    to_end = k * (last - total).exp()[..., None]
    s = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    outputs: list[Tensor] = []
    for i in range(q.shape[2]):
        written = writes[:, :, i] - reads[:, :, i] @ s
        outputs.append(decayed_q[:, :, i] @ s + pairs[:, :, i] @ written)
        s = s * last[:, :, i, :, None].exp() + to_end[:, :, i].transpose(-1, -2) @ written
    return torch.cat(outputs, 2)[:, :, :time], s
