"""A recurrent language model: gated recurrent units in place of attention."""

import torch
from torch import Tensor, nn

from kleiber.nn.heads import LMHead, TaskHead
from kleiber.nn.mlp import RMSNorm
from kleiber.nn.mup import MuP
from kleiber.types import Context, Depth, VocabSize, Width
from kleiber.types.batch import Batch, Output, Role
from kleiber.types.model import DecodingCache, Layer, Model


class States(DecodingCache):
    """The state of each layer after the positions that have been read."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers: list[Tensor | None] = [None] * depth
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def tensors(self) -> list[Tensor]:
        return [state for state in self.layers if state is not None]


class Recurrence(Layer, nn.GRU):
    """One layer of gated recurrent units. Without biases, a state of 0 stays 0 while the input is 0."""

    def __init__(self, width: int) -> None:
        nn.GRU.__init__(self, width, width, bias=False, batch_first=True)

    def roles(self) -> dict[str, Role]:
        return {name: Role("hidden", self.input_size) for name, _ in self.named_parameters()}

    def flops(self, time: int) -> float:
        return 2.0 * sum(matrix.numel() for matrix in self.parameters())


class GRU(Model):
    """x += gru(norm(x)) in each of `depth` layers of `width` channels. Cho et al. 2014, arXiv:1406.1078."""

    causal, tied = True, True

    def __init__(self, vocab_size: VocabSize, depth: Depth = 2, width: Width = 64, context: Context = 256) -> None:
        super().__init__()
        self.vocab_size, self.width, self.context, self.parametrization = vocab_size, width, context, MuP()
        std, self.embedding_multiplier = self.parametrization.embedding(tied=True)
        self.embedding = nn.Embedding(vocab_size, width, _weight=torch.randn(vocab_size, width) * std)
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(Recurrence(width) for _ in range(depth))  # type: ignore[assignment]
        self.norm = RMSNorm(width)
        self.head = LMHead(self.embedding.get_parameter("weight"), self.parametrization.output(width).multiplier)
        self.heads = nn.ModuleDict()

    def forward(self, batch: Batch, caches: States | None = None) -> Output:
        caches = States(len(self.blocks)) if caches is None else caches
        x = self.embedding(batch.tokens) * self.embedding_multiplier
        if batch.real is not None:  # padding on the left must not change the state
            x = x * batch.real.unsqueeze(-1)
        for layer, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            change, caches.layers[layer] = block(norm(x), caches.layers[layer])
            x = x + change
        caches.length += batch.tokens.shape[1]
        return Output(self.norm(x))

    def new_caches(self, length: int) -> States:
        return States(len(self.blocks))

    def add_head(self, name: str, outputs: int) -> None:
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs, self.parametrization.output(self.width).multiplier)
