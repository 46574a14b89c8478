"""A small mixture of experts that adapters are applied to, and tokens for it."""

from functools import partial

import torch

from kleiber.adapters.lora import DoRA, LoRA
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe
from kleiber.types.batch import Batch

VOCAB = 23
MOE = partial(interleaved_moe, num_experts=4, num_shared=1)
ALL = ["attention", "mlp", "experts", "router", "head"]
KINDS = [LoRA, DoRA]


def build(dtype=torch.float64, **options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(VOCAB, **{"depth": 2, "width": 32, "context": 16, "tied": False, "mlp": MOE} | options)
    torch.nn.init.normal_(model.head.weight)
    return model.to(dtype)


def logits(model, tokens) -> torch.Tensor:
    return model.head(model(Batch(tokens)).hidden)


def shaken(model: Transformer, std: float = 0.1) -> Transformer:
    """As if trained: both factors of every update away from 0, magnitudes from the norms."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=std)
    return model


TOKENS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
