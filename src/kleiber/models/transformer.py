"""Output layers: a language model's, whose matrix may be the embedding's, and those of tasks with their own outputs.

One Transformer: pre-norm blocks of attention and an MLP, causal or not, dense or with experts by the MLP's factory.

It refuses to compute a loss, to hold a tokenizer or to know how it is trained: tokens in, hidden states out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.nn.attention import FullAttention, RMSNorm
from kleiber.nn.kv_cache import Cache
from kleiber.nn.mlp import SwiGLU
from kleiber.nn.mup import Factory, MuP, Parametrization, Site
from kleiber.types.batch import Batch, Output, Role
from kleiber.types.model import Model


class LMHead(nn.Module):
    """logits = cap(multiplier hidden @ weight.T), cap(x) = soft_cap tanh(x / soft_cap); Gemma 2, arXiv:2408.00118."""

    def __init__(self, weight: nn.Parameter, multiplier: float = 1.0, soft_cap: float | None = None) -> None:
        super().__init__()
        if soft_cap is not None and soft_cap <= 0:
            raise ValueError(f"soft_cap={soft_cap} must be positive, or null for none; Gemma 2 uses 30")
        self.weight, self.multiplier, self.soft_cap = weight, multiplier, soft_cap

    def forward(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        logits = F.linear(hidden, self.weight) * self.multiplier
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1])}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel()


class TaskHead(nn.Module):
    """scores = multiplier hidden @ weight.T + bias, from pooled hidden states; it starts at 0, so at no preference."""

    def __init__(self, width: int, outputs: int, multiplier: float = 1.0) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"a head of {outputs} outputs predicts nothing: give at least one class")
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
    """x += r attention(norm(x)); x += r mlp(norm(x)); RMSNorm before the head. Touvron et al. 2023, arXiv:2302.13971.

    depth, width     blocks, and channels of the stream; width null: aspect * depth
    context          longest row, in tokens
    mlp, attention   factories, called once a layer with its `Site`
    num_heads, num_kv_heads, qk_norm, rope_theta  handed to the attention where set; null leaves its own default
    parametrization  initial scales, multipliers and learning-rate factors
    tied             the head uses the embedding's matrix
    soft_cap         bound of the logits, or null
    """

    def __init__(
        self,
        vocab_size: int,
        depth: int = 2,
        width: int | None = None,
        aspect: int = 64,
        context: int = 256,
        num_heads: int | None = None,
        num_kv_heads: int | None = None,
        mlp: Factory = SwiGLU,
        attention: Factory = FullAttention,
        parametrization: Parametrization = MuP(),  # noqa: B008 (frozen)
        tied: bool = True,
        causal: bool = True,
        qk_norm: bool | None = None,
        soft_cap: float | None = None,
        rope_theta: float | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        width = aspect * depth if width is None else width
        for name, value in {"vocab_size": vocab_size, "depth": depth, "width": width, "context": context}.items():
            if value < 1:
                raise ValueError(f"model.{name}={value} must be at least 1")
        self.vocab_size, self.width, self.context, self.causal, self.tied = vocab_size, width, context, causal, tied
        self.parametrization = parametrization
        std, self.embedding_multiplier = parametrization.embedding(tied)
        self.embedding = nn.Embedding(vocab_size, width, _weight=torch.randn(vocab_size, width) * std)
        sites = [Site(width, depth, layer, parametrization, context, causal, norm_eps) for layer in range(depth)]
        options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm, "rope_theta": rope_theta}
        options = {name: value for name, value in options.items() if value is not None}
        self.blocks = nn.ModuleList(Block(site, attention(site, **options), mlp(site)) for site in sites)
        self.norm = RMSNorm(width, norm_eps)
        std, multiplier = parametrization.output(width)
        shared = cast(nn.Parameter, self.embedding.weight)
        weight = shared if tied else nn.Parameter(torch.randn(vocab_size, width) * std)
        self.head = LMHead(weight, multiplier, soft_cap)
        self.heads = nn.ModuleDict()

    def forward(self, batch: Batch, caches: list[Cache] | None = None) -> Output:
        """Hidden states after the final norm, and the layers' auxiliary sums. `caches` (one a layer) grow in place."""
        time, past = batch.tokens.shape[1], len(caches[0]) if caches is not None else 0
        if past + time > self.context:
            raise ValueError(f"{past + time} tokens in a row exceed model.context={self.context}")
        x = self.embedding(batch.tokens)
        if self.embedding_multiplier != 1:
            x = x * self.embedding_multiplier
        real = batch.real if caches is None else caches[0].remember(batch.real, batch.tokens)
        mask = cast(Block, self.blocks[0]).attention.mask(time, past, x.device, real, batch.segments)
        aux: dict[str, Tensor] = {}
        for layer, block in enumerate(self.blocks):
            x, more = block(x, mask, batch, caches[layer] if caches is not None else None)
            if "loss" in more:
                loss = more.pop("loss")
                aux["loss"] = aux["loss"] + loss if "loss" in aux else loss
            aux |= {f"{name}/{layer}": value for name, value in more.items()}
        return Output(self.norm(x), aux)

    def new_caches(self, length: int) -> list[Cache]:
        """Empty caches, one a layer, for decoding rows of up to `length` tokens."""
        return [Cache(length) for _ in self.blocks]

    def add_head(self, name: str, outputs: int) -> None:
        """Gives the model an output layer of its own for a task, as `heads[name]`, where it has none of that name."""
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs, self.parametrization.output(self.width).multiplier)

    def leave_out_head(self) -> None:
        """Stops training the output layer of tokens, for an objective that does not read it; not a tied one's table."""
        if not self.tied:
            self.head.weight.requires_grad_(False)

    def rebalance(self, sums: Mapping[str, Tensor]) -> None:
        """Once after an optimizer step: hands the loads of its global batch to the routers that balance by them.

        Raises ValueError where an objective does not report them, since such a router would silently stand still.
        """
        for layer, block in enumerate(self.blocks):
            router = getattr(block.mlp, "router", None)
            if hasattr(router, "rebalance"):
                if f"load/{layer}" not in sums:
                    raise ValueError(
                        f"router {type(router).__name__} balances by the load of each step, which this objective "
                        "does not report: choose another model/router"
                    )
                cast(Any, router).rebalance(sums[f"load/{layer}"])

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, a tied matrix once and as the embedding."""
        return roles(self)


class Block(nn.Module):
    """One layer; r, the weight of its two branches, is the parametrisation's."""

    def __init__(self, site: Site, attention: Any, mlp: Any) -> None:
        super().__init__()
        self.attention: Any
        self.mlp: Any
        self.residual = site.parametrization.residual(site.depth)
        self.attention_norm, self.attention = RMSNorm(site.width, site.norm_eps), attention
        self.mlp_norm, self.mlp = RMSNorm(site.width, site.norm_eps), mlp

    def forward(
        self, x: Tensor, mask: Tensor | None, batch: Batch, cache: Cache | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.add(x, self.attention(self.attention_norm(x), mask, cache), alpha=self.residual)
        y, aux = self.mlp(self.mlp_norm(x), batch)
        return torch.add(x, y, alpha=self.residual), aux


def roles(model: nn.Module) -> dict[str, Role]:
    """Role of each parameter by the module that owns it: its own `roles()`, else linear or embedding."""
    found: dict[str, Role] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            found.setdefault(names[id(parameter)], _role(module, name))
    return {name: found[name] for name in names.values()}


def _role(module: nn.Module, name: str) -> Role:
    own = getattr(module, "roles", None)
    if own is not None and not isinstance(module, Transformer):
        return own()[name]
    if isinstance(module, nn.Linear):
        return Role("hidden", module.in_features) if name == "weight" else Role("vector", 1)
    assert isinstance(module, nn.Embedding), f"{type(module).__name__}.{name} has no role: give its class a roles()"
    return Role("embedding", 1)
