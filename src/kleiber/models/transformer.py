"""A Transformer: blocks of attention and an MLP, and output layers for tokens and for tasks.

It may be causal or bidirectional, dense or with experts, depending on the factories of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.nn.attention import FullAttention
from kleiber.nn.mlp import RMSNorm, SwiGLU
from kleiber.nn.mup import MuP, Site
from kleiber.types import Context, Depth, Dropout, NonNegative, Positive, VocabSize, Width
from kleiber.types.batch import Batch, Output, Role
from kleiber.types.model import MLP, Attention, DecodingCache, Head, Layer, LayerCache, Model, Parametrization

Placement = Literal["pre", "post", "sandwich"]


class LMHead(Layer, Head):
    """logits = cap(multiplier hidden @ weight.T), cap(x) = soft_cap tanh(x / soft_cap); Gemma 2, arXiv:2408.00118."""

    def __init__(self, weight: nn.Parameter, multiplier: float = 1.0, soft_cap: float | None = None) -> None:
        super().__init__()
        self.weight, self.multiplier, self.soft_cap = weight, multiplier, soft_cap

    def forward(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        logits = F.linear(hidden, self.weight) * self.multiplier
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1])}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel()


class TaskHead(Layer):
    """scores = multiplier pooled @ weight.T + bias, from pooled hidden states; weight and bias start at 0."""

    def __init__(self, width: int, outputs: int, multiplier: float = 1.0) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"a task's output layer needs >= 1 outputs, not {outputs}")
        self.multiplier = multiplier
        self.weight = nn.Parameter(torch.zeros(outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, pooled: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes outputs"]:
        return F.linear(pooled, self.weight) * self.multiplier + self.bias

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1]), "bias": Role("vector", 1)}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel() / time


class Transformer(Model):
    """Blocks of x += r attention(norm(x)) and x += r mlp(norm(x)), then RMSNorm. Touvron et al. 2023, arXiv:2302.13971.

    depth, width     number of blocks, and channels of the stream; width null: aspect * depth
    context          longest row, in tokens
    mlp, attention   factories, called once per layer with its `Site`
    num_heads, num_kv_heads, qk_norm, rope_theta  options of the attention; null takes its default
    norm             where blocks normalize: `pre`, before attention and MLP; `post`, the stream after each was added
                     (Vaswani et al. 2017, arXiv:1706.03762); `sandwich`, before and after each (Gemma 2,
                     arXiv:2408.00118)
    parametrization  initial scales, multipliers and learning-rate factors
    tied             whether the head uses the embedding's matrix
    soft_cap         bound of the logits, or null
    dropout          share of the embeddings' channels and of each layer's two outputs that training sets to 0, as in
                     Vaswani et al. 2017, arXiv:1706.03762, section 5.4; attention probabilities are not dropped
    """

    blocks: Sequence[Block]

    def __init__(
        self,
        vocab_size: VocabSize,
        depth: Depth = 2,
        width: Width | None = None,
        aspect: Width = 64,
        context: Context = 256,
        num_heads: Width | None = None,
        num_kv_heads: Width | None = None,
        mlp: Callable[..., MLP] = SwiGLU,
        attention: Callable[..., Attention] = FullAttention,
        parametrization: Parametrization = MuP(),  # noqa: B008 (frozen)
        tied: bool = True,
        causal: bool = True,
        qk_norm: bool | None = None,
        soft_cap: Positive | None = None,
        rope_theta: Positive | None = None,
        norm: Placement = "pre",
        norm_eps: NonNegative = 1e-5,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        width = aspect * depth if width is None else width
        self.vocab_size, self.width, self.context, self.causal, self.tied = vocab_size, width, context, causal, tied
        self.parametrization, self.dropout = parametrization, dropout
        std, self.embedding_multiplier = parametrization.embedding(tied)
        self.embedding = nn.Embedding(vocab_size, width, _weight=torch.randn(vocab_size, width) * std)
        sites = [Site(width, depth, layer, parametrization, context, causal, norm_eps) for layer in range(depth)]
        options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm, "rope_theta": rope_theta}
        options = {name: value for name, value in options.items() if value is not None}
        blocks = nn.ModuleList(Block(site, attention(site, **options), mlp(site), dropout, norm) for site in sites)
        self.blocks = cast(Sequence[Block], blocks)
        self.norm = RMSNorm(width, norm_eps)
        std, multiplier = parametrization.output(width)
        shared = cast(nn.Parameter, self.embedding.weight)
        weight = shared if tied else nn.Parameter(torch.randn(vocab_size, width) * std)
        self.head = LMHead(weight, multiplier, soft_cap)
        self.heads = nn.ModuleDict()

    def forward(self, batch: Batch, caches: KeyValueCache | None = None) -> Output:
        """Hidden states after the final norm, and the layers' auxiliary sums.

        Raises ValueError for rows longer than the context, cached positions included.
        """
        time, past = batch.tokens.shape[1], 0 if caches is None else len(caches)
        if past + time > self.context:
            raise ValueError(
                f"a row has {past + time} tokens, and must have at most model.context={self.context}: shorten the row"
            )
        x = self.embedding(batch.tokens)
        if self.embedding_multiplier != 1:
            x = x * self.embedding_multiplier
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        real = batch.real if caches is None else caches.remember(batch.real, batch.tokens)
        mask = self.blocks[0].attention.mask(time, past, x.device, real, batch.segments)
        aux: dict[str, Tensor] = {}
        for layer, block in enumerate(self.blocks):
            x, sums = block(x, mask, batch, None if caches is None else caches.layers[layer])
            if "loss" in sums:
                loss = sums.pop("loss")
                aux["loss"] = aux["loss"] + loss if "loss" in aux else loss
            aux |= {f"{name}/{layer}": value for name, value in sums.items()}
        return Output(self.norm(x), aux)

    def new_caches(self, length: int) -> KeyValueCache:
        return KeyValueCache(len(self.blocks), length)

    def add_head(self, name: str, outputs: int) -> None:
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs, self.parametrization.output(self.width).multiplier)

    def leave_out_head(self) -> None:
        """Stops training the output matrix over tokens; a tied matrix is still trained, as the embedding."""
        if not self.tied:
            self.head.weight.requires_grad_(False)

    def rebalance(self, sums: Mapping[str, Tensor]) -> None:
        """Passes the load of each layer to its router.

        Raises ValueError where a router needs a load that is not reported.
        """
        for layer, block in enumerate(self.blocks):
            block.mlp.rebalance(sums.get(f"load/{layer}"))

    def roles(self) -> dict[str, Role]:
        return roles(self)


class KeyValueCache(DecodingCache):
    """One `Cache` per layer, for rows of `length` tokens."""

    def __init__(self, depth: int, length: int) -> None:
        super().__init__()
        self.layers = [Cache(length) for _ in range(depth)]

    def __len__(self) -> int:
        return len(self.layers[0])

    def tensors(self) -> list[Tensor]:
        return [tensor for cache in self.layers for tensor in (cache.keys, cache.values) if tensor is not None]

    def select(self, rows: Int[Tensor, "_"], length: int) -> KeyValueCache:
        """Keeps the rows of these numbers, in that order."""
        selected = KeyValueCache(len(self.layers), length)
        for new, old in zip(selected.layers, self.layers, strict=True):
            if old.keys is not None and old.values is not None:
                new.extend(old.keys[rows, :, : old.used], old.values[rows, :, : old.used])
        selected.real = None if self.real is None else self.real[rows]
        return selected


class Cache:
    """Keys and values of one layer while decoding, in buffers for `length` positions.

    A step writes only its new positions. Buffers that are full are replaced by ones of twice the size.
    """

    def __init__(self, length: int = 0) -> None:
        self.capacity, self.used = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return self.used

    def extend(
        self, keys: Float[Tensor, "batch heads time head_dim"], values: Float[Tensor, "batch heads time head_dim"]
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """Adds the keys and values of new positions; returns those of all positions, as views."""
        start, self.used = self.used, self.used + keys.shape[2]
        if self.keys is None or self.values is None or self.used > self.capacity:
            self._grow(keys, start)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, start : self.used] = keys
        self.values[:, :, start : self.used] = values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def _grow(self, like: Tensor, length: int) -> None:
        """New buffers that hold all positions, with the first `length` ones copied from the old buffers."""
        self.capacity = max(self.capacity, self.used if self.keys is None else 2 * self.used)
        old, shape = (self.keys, self.values), (*like.shape[:2], self.capacity, like.shape[3])
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        for new, previous in zip((self.keys, self.values), old, strict=True):
            if previous is not None:
                new[:, :, :length] = previous[:, :, :length]


class Block(nn.Module):
    """One layer: attention and an MLP, each added to the stream with the parametrization's residual weight."""

    def __init__(
        self, site: Site, attention: Attention, mlp: MLP, dropout: float = 0.0, norm: Placement = "pre"
    ) -> None:
        super().__init__()
        self.residual, self.dropout, self.norm = site.parametrization.residual(site.depth), dropout, norm
        self.attention_norm, self.attention = RMSNorm(site.width, site.norm_eps), attention
        self.mlp_norm, self.mlp = RMSNorm(site.width, site.norm_eps), mlp
        if norm == "sandwich":
            self.attention_output_norm = RMSNorm(site.width, site.norm_eps)
            self.mlp_output_norm = RMSNorm(site.width, site.norm_eps)

    def forward(
        self, x: Tensor, mask: Tensor | None, batch: Batch, cache: LayerCache | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The stream after the layer, and the auxiliary sums of its MLP."""
        if self.norm == "post":
            x = self.attention_norm(self.add(x, self.attention(x, mask, cache)))
            y, aux = self.mlp(x, batch)
            return self.mlp_norm(self.add(x, y)), aux
        y = self.attention(self.attention_norm(x), mask, cache)
        x = self.add(x, self.attention_output_norm(y) if self.norm == "sandwich" else y)
        y, aux = self.mlp(self.mlp_norm(x), batch)
        return self.add(x, self.mlp_output_norm(y) if self.norm == "sandwich" else y), aux

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x plus the output y of attention or MLP, with dropout of y while training."""
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return torch.add(x, y, alpha=self.residual)


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter, from the first `Layer`, linear layer or embedding that holds it."""
    by_name: dict[str, Role] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            by_name.setdefault(names[id(parameter)], _role(module, name))
    return {name: by_name[name] for name in names.values()}


def _role(module: nn.Module, name: str) -> Role:
    if isinstance(module, Layer):
        return module.roles()[name]
    if isinstance(module, nn.Linear):
        return Role("hidden", module.in_features) if name == "weight" else Role("vector", 1)
    assert isinstance(module, nn.Embedding), f"{type(module).__name__}.{name} has no role: make its class a Layer"
    return Role("embedding", 1)
