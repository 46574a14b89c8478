"""A Transformer: blocks of attention and an MLP, and output layers for tokens and for tasks.

It may be causal or bidirectional, dense or with experts, depending on the factories of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from kleiber.models.block import Block, FutureHead, NormType, Placement, add_sums, new_norm, token_positions
from kleiber.models.cache import KeyValueCache
from kleiber.nn.attention import FullAttention
from kleiber.nn.heads import LMHead, TaskHead
from kleiber.nn.mlp import SwiGLU
from kleiber.nn.mup import MuP, Site
from kleiber.types import Context, Depth, Dropout, NonNegative, Positive, VocabSize, Width
from kleiber.types.batch import Batch, Output
from kleiber.types.model import MLP, Attention, Model, Parametrization

PositionKind = Literal["rotary", "alibi", "learned", "none"]


class Transformer(Model):
    """Blocks of x += r attention(norm(x)) and x += r mlp(norm(x)), then a norm. Touvron et al. 2023, arXiv:2302.13971.

    depth, width     number of blocks, and channels of the stream; width null: aspect * depth
    context          longest row, in tokens
    mlp, attention   factories, called once per layer with its `Site`
    num_heads, num_kv_heads, qk_norm, rope_theta  options of the attention; null takes its default
    positions        `rotary`, `alibi` or `none` (see `FullAttention`), or `learned`: a vector per position is added to
                     the embedding (Radford et al. 2019); packed documents and padded rows count from their first token
    norm             where blocks normalize: `pre`, before attention and MLP; `post`, the stream after each was added
                     (Vaswani et al. 2017, arXiv:1706.03762); `sandwich`, before and after each (Gemma 2,
                     arXiv:2408.00118)
    norm_type        `rmsnorm`, or `layernorm` with a bias (Ba et al. 2016, arXiv:1607.06450), of blocks and of the end;
                     norms inside an attention, such as QK-norm, stay RMSNorm
    parametrization  initial scales, multipliers and learning-rate factors
    tied             whether the head uses the embedding's matrix
    soft_cap         bound of the logits, or null
    future           number of later tokens that training predicts too, the second next and so on, each by a block of
                     its own on the last block (Gloeckle et al. 2024, arXiv:2404.19737, section 2)
    future_weight    weight of the mean of their losses in the loss of next tokens
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
        positions: PositionKind | None = None,
        norm: Placement = "pre",
        norm_type: NormType = "rmsnorm",
        norm_eps: NonNegative = 1e-5,
        dropout: Dropout = 0.0,
        future: Annotated[int, Ge(0), Le(64)] = 0,
        future_weight: NonNegative = 0.3,
    ) -> None:
        super().__init__()
        width = aspect * depth if width is None else width
        self.vocab_size, self.width, self.context, self.causal, self.tied = vocab_size, width, context, causal, tied
        self.parametrization, self.dropout = parametrization, dropout
        std, self.embedding_multiplier = parametrization.embedding(tied)
        self.embedding = nn.Embedding(vocab_size, width, _weight=torch.randn(vocab_size, width) * std)
        first = Site(width, depth, 0, parametrization, context, causal, norm_eps)
        sites = [replace(first, layer=layer) for layer in range(depth)]
        options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm, "rope_theta": rope_theta}
        options |= {"positions": "none" if positions == "learned" else positions}
        options = {name: value for name, value in options.items() if value is not None}

        def block(site: Site) -> Block:
            return Block(site, attention(site, **options), mlp(site), dropout, norm, norm_type)

        self.blocks = cast(Sequence[Block], nn.ModuleList(block(site) for site in sites))
        keys = [(type(block.attention), block.attention.mask_key) for block in self.blocks]
        self.mask_layers = [keys.index(key) for key in keys]  # the first layer with the mask of each layer
        self.shares_values = any(block.attention.shares_values for block in self.blocks)
        self.prefix = any(block.attention.prefix for block in self.blocks)
        self.norm = new_norm(norm_type, width, norm_eps)
        std, multiplier = parametrization.output(width)
        shared = cast(nn.Parameter, self.embedding.weight)
        weight = shared if tied else nn.Parameter(torch.randn(vocab_size, width) * std)
        self.head = LMHead(weight, multiplier, soft_cap, 1 + future)
        self.heads = nn.ModuleDict()
        if future and not causal:
            raise ValueError(
                f"model.future={future} predicts later tokens, which needs model.causal=true: set future=0"
            )
        table = torch.randn(context, width) * parametrization.embedding(tied).std if positions == "learned" else None
        self.positions = None if table is None else nn.Embedding(context, width, _weight=table)
        later = [replace(sites[0], layer=depth + number) for number in range(future)]
        self.future = nn.ModuleList(FutureHead(block(site)) for site in later)
        self.future_weight = future_weight

    def vocabulary(self) -> list[Tensor]:
        return super().vocabulary() + ([] if self.positions is None else [self.positions.weight])

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
        real = batch.real if caches is None else caches.remember(batch.real, batch.tokens)
        if caches is not None:
            batch = replace(batch, positions=token_positions(batch.tokens, past, real))
        if self.positions is not None:
            x = x + self.positions(token_positions(batch.tokens, past, real, batch.segments))
        if self.embedding_multiplier != 1:
            x = x * self.embedding_multiplier
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        masks: dict[int, Tensor | None] = {}
        first_values: list[Tensor] | None = [] if self.shares_values else None
        aux: dict[str, Tensor] = {}
        for layer, (block, same) in enumerate(zip(self.blocks, self.mask_layers, strict=True)):
            if same == layer:
                masks[layer] = block.attention.mask(time, past, x.device, real, batch.segments, batch.prefix)
            x, sums = block(x, masks[same], batch, None if caches is None else caches.layers[layer], first_values)
            add_sums(aux, sums, layer)
        later: list[Tensor] = []
        if self.training and caches is None:
            for layer, part in enumerate(self.future, start=len(self.blocks)):
                hidden, sums = part(x, batch, first_values)
                later.append(hidden)
                add_sums(aux, sums, layer)
        return Output(self.norm(x), aux, later)

    def new_caches(self, length: int) -> KeyValueCache:
        return KeyValueCache(len(self.blocks), length)

    def add_head(self, name: str, outputs: int) -> None:
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs, self.parametrization.output(self.width).multiplier)

    def rebalance(self, sums: Mapping[str, Tensor]) -> None:
        """Passes the load of each layer to its router.

        Raises ValueError where a router needs a load that is not reported.
        """
        for layer, block in enumerate([*self.blocks, *(part.get_submodule("block") for part in self.future)]):
            cast(Block, block).mlp.rebalance(sums.get(f"load/{layer}"))
