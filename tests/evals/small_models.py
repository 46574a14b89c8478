"""Small models whose predictions are explained, probed and patched."""

from functools import partial

import torch
from torch import Tensor, nn

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.lstm import LSTM
from kleiber.models.transformer import Transformer
from kleiber.nn.heads import LMHead
from kleiber.nn.moe import interleaved_moe
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch, Output
from kleiber.types.contracts import Objective
from kleiber.types.model import Model

TIME, VOCAB = 9, 32


class Sums(Model):
    """The first logit at each position is the sum of the first channels of the tokens so far; the other one is 0."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vocab_size, self.width = vectors.shape
        self.context = TIME
        self.embedding = nn.Embedding(*vectors.shape, _weight=vectors)
        self.head = LMHead(nn.Parameter(torch.eye(2, self.width)))
        self.blocks = []

    def forward(self, batch: Batch, caches: None = None) -> Output:
        summed = self.embedding(batch.tokens).cumsum(1)
        return Output(torch.cat([summed[..., :1], torch.full_like(summed[..., 1:], 0.0)], -1))


def tiny(kind: str) -> Model:
    torch.manual_seed(0)
    if kind == "lstm":
        return LSTM(272, depth=1, width=16, context=TIME).eval()
    options = {"mlp": partial(interleaved_moe, num_experts=4)} if kind == "moe" else {}
    return Transformer(272, depth=2, width=16, context=TIME, num_heads=2, causal=kind != "masked", **options).eval()


def subject_on_rows(model: Model, data: object, name: str = "text", objective: Objective | None = None) -> Subject:
    """A model of bytes with held-out rows as the validation data of its run."""
    of_run = DataSet(name, lambda: data, of_run=True)  # type: ignore[arg-type,return-value]
    return Subject(model, Bytes(), objective or CLM(), objective or CLM(), [of_run])
