"""A recurrent language model with the parameters of a Transformer: LSTM layers between the same embedding and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.config.model_size import lstm_hidden
from kleiber.nn.heads import LMHead, TaskHead
from kleiber.nn.mlp import RMSNorm
from kleiber.nn.mup import MuP, Site
from kleiber.types import Context, Depth, NonNegative, Positive, VocabSize, Width
from kleiber.types.batch import Batch, Output, Role
from kleiber.types.model import DecodingCache, Layer, Model, Parametrization

State = tuple[Float[Tensor, "1 batch hidden"], Float[Tensor, "1 batch hidden"]]  # the output and the cell


class LSTM(Model):
    """Blocks of x += r out(lstm(norm(x))), then RMSNorm. Hochreiter and Schmidhuber 1997; Zaremba et al. 2014,
    arXiv:1409.2329.

    A state of fixed size carries what has been read, where a Transformer keeps the keys and values of every token.
    There is no MLP; at the default `hidden` a block has the parameters of a Transformer block of equal width.

    depth, width     number of blocks, and channels of the stream; width null: aspect * depth
    hidden           channels of the state; null: about 1.2 width, which makes the parameters equal
    context          longest row, in tokens
    forget_bias      initial bias of the forget gates: 1 keeps the state (Jozefowicz et al. 2015)
    parametrization  initial scales, multipliers and learning-rate factors
    tied             whether the head uses the embedding's matrix
    soft_cap         bound of the logits, or null
    """

    blocks: Sequence[RecurrentBlock]

    def __init__(
        self,
        vocab_size: VocabSize,
        depth: Depth = 2,
        width: Width | None = None,
        aspect: Width = 64,
        hidden: Width | None = None,
        context: Context = 256,
        forget_bias: NonNegative = 1.0,
        parametrization: Parametrization = MuP(),  # noqa: B008 (frozen)
        tied: bool = True,
        soft_cap: Positive | None = None,
        norm_eps: NonNegative = 1e-5,
    ) -> None:
        super().__init__()
        width = aspect * depth if width is None else width
        self.vocab_size, self.width, self.context, self.tied = vocab_size, width, context, tied
        self.parametrization = parametrization
        std, self.embedding_multiplier = parametrization.embedding(tied)
        self.embedding = nn.Embedding(vocab_size, width, _weight=torch.randn(vocab_size, width) * std)
        sites = [Site(width, depth, layer, parametrization, context, True, norm_eps) for layer in range(depth)]
        size = lstm_hidden(width) if hidden is None else hidden
        blocks = nn.ModuleList(RecurrentBlock(site, size, forget_bias) for site in sites)
        self.blocks = cast(Sequence[RecurrentBlock], blocks)
        self.norm = RMSNorm(width, norm_eps)
        std, multiplier = parametrization.output(width)
        shared = cast(nn.Parameter, self.embedding.weight)
        weight = shared if tied else nn.Parameter(torch.randn(vocab_size, width) * std)
        self.head = LMHead(weight, multiplier, soft_cap)
        self.heads = nn.ModuleDict()

    def forward(self, batch: Batch, caches: StateCache | None = None) -> Output:
        """Hidden states after the final norm.

        Padding is on the right without a cache, where it changes no earlier state, and on the left with one. Raises
        ValueError for packed segments, and for rows longer than the context, cached positions included.
        """
        if batch.segments is not None:
            raise ValueError(
                "model=lstm reads on across the documents that this data packs into a row: set data.pack=false, or "
                "use model=gpt"
            )
        past = 0 if caches is None else len(caches)
        if past + batch.tokens.shape[1] > self.context:
            raise ValueError(
                f"a row has {past + batch.tokens.shape[1]} tokens, and must have at most model.context={self.context}: "
                "shorten the row"
            )
        x = self.embedding(batch.tokens)
        if self.embedding_multiplier != 1:
            x = x * self.embedding_multiplier
        if caches is not None:
            caches.remember(batch.real, batch.tokens)
            caches.length += batch.tokens.shape[1]
        for layer, block in enumerate(self.blocks):
            if caches is None:
                x, _ = block(x)
            else:
                x, caches.states[layer] = block(x, caches.states[layer], batch.real)
        return Output(self.norm(x))

    def new_caches(self, length: int) -> StateCache:
        return StateCache(len(self.blocks))

    def add_head(self, name: str, outputs: int) -> None:
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs, self.parametrization.output(self.width).multiplier)


class StateCache(DecodingCache):
    """The state of each layer after the positions that have been read, which are counted in `length`."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.states: list[State | None] = [None] * depth
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def tensors(self) -> list[Tensor]:
        return [tensor for state in self.states if state is not None for tensor in state]

    def select(self, rows: Int[Tensor, "_"], length: int) -> StateCache:
        selected = StateCache(len(self.states))
        selected.states = [None if state is None else (state[0][:, rows], state[1][:, rows]) for state in self.states]
        selected.length, selected.real = self.length, None if self.real is None else self.real[rows]
        return selected


class RecurrentBlock(nn.Module):
    """One layer: an LSTM on the normalized stream, and a projection that is added to the stream."""

    def __init__(self, site: Site, hidden: int, forget_bias: float) -> None:
        super().__init__()
        self.residual = site.parametrization.residual(site.depth)
        self.norm = RMSNorm(site.width, site.norm_eps)
        self.lstm = Recurrence(site, hidden, forget_bias)
        self.out = site.projection(hidden)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: State | None = None, real: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """The stream after the layer, and the state after the last position."""
        y, state = self.lstm.read(self.norm(x), state, real)
        return torch.add(x, self.out(y), alpha=self.residual), state


class Recurrence(Layer, nn.LSTM):
    """PyTorch's LSTM layer with the initial scales of a parametrization."""

    def __init__(self, site: Site, hidden: int, forget_bias: float) -> None:
        nn.LSTM.__init__(self, site.width, hidden, batch_first=True)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=site.parametrization.hidden_std(parameter.shape[1]))
            else:
                nn.init.zeros_(parameter)
            if name == "bias_ih_l0":  # gates are in the order input, forget, cell, output
                with torch.no_grad():
                    parameter[hidden : 2 * hidden] = forget_bias

    def read(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State | None = None,
        real: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time hidden"], State]:
        """Outputs at all positions, and the state after the last one.

        real  False where the state must not change; those positions are read one by one
        """
        if real is None or bool(real.all()):
            return self(x, state)
        zeros = x.new_zeros(1, len(x), self.hidden_size)
        state, outputs = state or (zeros, zeros), list[Tensor]()
        for time in range(x.shape[1]):
            output, after = self(x[:, time : time + 1], state)
            keep = real[None, :, time, None]
            state = (torch.where(keep, after[0], state[0]), torch.where(keep, after[1], state[1]))
            outputs.append(output)
        return torch.cat(outputs, 1), state

    def roles(self) -> dict[str, Role]:
        return {
            name: Role("hidden", parameter.shape[1]) if parameter.dim() > 1 else Role("vector", 1)
            for name, parameter in self.named_parameters()
        }

    def flops(self, time: int) -> float:
        return 2.0 * sum(parameter.numel() for parameter in self.parameters() if parameter.dim() > 1)
