"""A small mixture of experts, and random text in two domains that it reads."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from evals.subjects import subject_of

from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut

VOCAB, CONTEXT = 30, 16


class Rows(HeldOut):
    """Rows of random tokens from a part of the vocabulary; the last row is half padding."""

    def __init__(self, low: int, high: int, rows: int = 12) -> None:
        self.tokens = np.random.default_rng(low).integers(low, high, (rows, CONTEXT + 1))
        self.num_tokens, self.num_bytes = rows * CONTEXT, rows * CONTEXT

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, tokens: int | None) -> "Rows":
        return self

    def gather(self, index: np.ndarray, epoch: int = 0) -> Batch:
        real = torch.ones(len(index), CONTEXT + 1, dtype=torch.bool)
        real[torch.from_numpy(index) == len(self) - 1, 9:] = False
        tokens, samples = torch.from_numpy(self.tokens[index]), torch.from_numpy(index)
        return Batch(tokens, real=real, weights=real.float(), samples=samples)


def moe_subject(**options: object) -> Subject:
    """A model with experts on both layers, and the domains `low` and `high` with tokens of their own."""
    torch.manual_seed(0)
    mlp = partial(interleaved_moe, **{"num_experts": 4} | options)
    model = Transformer(VOCAB, depth=2, width=32, context=CONTEXT, num_heads=2, mlp=mlp).eval()
    parts = {"low": Rows(0, 15), "high": Rows(15, 30)}
    corpus = SimpleNamespace(name="", config="", hash="", tokenizer=Bytes(), train=parts["low"], validation=parts)
    return subject_of(model, corpus, CLM(), rows=5)  # type: ignore[arg-type]
