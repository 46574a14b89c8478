"""Layers that mix positions in other ways in turn, and a layer that does not mix them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kleiber.config.attention_size import RECEIVED
from kleiber.nn.attention import FullAttention
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mup import Site
from kleiber.nn.positions import Positions
from kleiber.nn.window import WindowAttention
from kleiber.types import Positive, Width
from kleiber.types.model import Attention, LayerCache

Mixer = Literal["full", "window", "latent", "delta", "none"]


def layer_pattern(
    site: Site,
    pattern: Sequence[Mixer] = ("window", "full"),
    full: Callable[..., Attention] = FullAttention,
    window: Callable[..., Attention] = WindowAttention,
    latent: Callable[..., Attention] = LatentAttention,
    delta: Callable[..., Attention] = GatedDeltaNet,
    num_heads: Width | None = None,
    num_kv_heads: Width | None = None,
    qk_norm: bool | None = None,
    rope_theta: Positive | None = None,
    positions: Positions | None = None,
    soft_cap: Positive | None = None,
    value_residual: bool | None = None,
) -> Attention:
    """Builds the attention of one layer: the kind at its place in `pattern`, which repeats itself up to the depth.

    Gemma 2 alternates window and full attention (arXiv:2408.00118, section 2); Qwen3-Next has three layers of the gated
    delta rule for each of full attention.

    pattern  kinds of consecutive layers: full, window, latent, delta or none
    full, window, latent, delta  factories of the layers of each kind

    Other arguments are those of `FullAttention`, for every layer of softmax attention, except that layers of `latent`
    share no values; `delta` has only the number of heads, and `none` none of them. Raises ValueError for a pattern that
    is longer than the model is deep, of which some layers would not exist.
    """
    if not 1 <= len(pattern) <= site.depth:
        raise ValueError(
            f"model.attention.pattern={list(pattern)} must have 1 to {site.depth} entries, because the model has "
            f"{site.depth} layers: set a larger model.depth"
        )
    kind = pattern[site.layer % len(pattern)]
    factories: dict[str, Callable[..., Attention]]
    factories = {"full": full, "window": window, "latent": latent, "delta": delta, "none": NoMixing}
    options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm, "rope_theta": rope_theta}
    options |= {"positions": positions, "soft_cap": soft_cap, "value_residual": value_residual}
    passed = {name: value for name, value in options.items() if value is not None and name in RECEIVED[kind]}
    return factories[kind](site, **passed)


class NoMixing(Attention):
    """No mixing across positions: out(value(x)), attention in which every position reads itself only.

    A control that shows how much a model gains from context. Raises ValueError for options of attention, because this
    layer has no queries, keys or positions.
    """

    refused_options = ("num_heads", "num_kv_heads", "qk_norm", "rope_theta", "positions")
    refused_because = "none has no queries, keys or positions"

    def __init__(
        self,
        site: Site,
        num_heads: Width | None = None,
        num_kv_heads: Width | None = None,
        qk_norm: bool | None = None,
        rope_theta: Positive | None = None,
        positions: Positions | None = None,
    ) -> None:
        super().__init__()
        if any(option is not None for option in (num_heads, num_kv_heads, qk_norm, rope_theta, positions)):
            raise ValueError(
                "model/attention=none has no queries, keys or positions: remove from the model's options "
                f"{num_heads=}, {num_kv_heads=}, {qk_norm=}, {rope_theta=}, {positions=}"
            )
        self.value = site.hidden(site.width, site.width)
        self.out = site.projection(site.width)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        first_values: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The output to add to the residual stream. Ignores the mask; a cache only counts the positions."""
        if cache is not None:
            empty = x.new_empty(x.shape[0], 1, x.shape[1], 0)
            cache.extend(empty, empty)  # so that the cache knows its length
        return self.out(self.value(x))
