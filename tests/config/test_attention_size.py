"""Formulas of the sizes of attention against real models: parameters and FLOPs, and the numbers that decoding keeps."""

import pytest
import torch
from omegaconf import OmegaConf

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.model_size import BYTES_VOCABULARY, cached_values, size
from kleiber.config.targets import build
from kleiber.models.counting import count_parameters, training_flops
from kleiber.types.batch import Batch

CHOICES = [
    ["model.depth=3", "model/attention=pattern", "model.attention.pattern=[window,none,full]"],
    ["model.positions=learned", "model.attention.soft_cap=5", "model.future=2"],
    ["model.num_heads=4", "model.attention.value_residual=true"],
    ["model/attention=latent", "model.attention.rank=24", "model.attention.query_rank=20"], ["model/attention=hybrid"],
    ["model/attention=hybrid", "model.attention.pattern=[delta,latent]"],
    ["model.attention.num_heads=4", "model.attention.num_kv_heads=1"],
    ["model/attention=hybrid", "model.attention.num_heads=4"],
    ["model/attention=latent", "model.attention.num_heads=4"],
    ["model/attention=pattern", "model.num_heads=4", "model.attention.window.num_kv_heads=1"],
]  # fmt: skip
COMPOSER = Composer()


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_a_size_is_that_of_the_model_and_of_its_cache(choice):
    node = resolve_config(COMPOSER.compose(["model.context=128", *choice]))[0]["model"]
    model = build(OmegaConf.create(node), vocab_size=BYTES_VOCABULARY)
    real, expected = count_parameters(model), size(node, BYTES_VOCABULARY)
    assert (expected.total, expected.active, expected.non_embedding) == (real.total, real.active, real.non_embedding)
    assert expected.flops_per_token == pytest.approx(training_flops(model, 128), rel=1e-12)
    caches = model.new_caches(128)
    model(Batch(torch.zeros(1, 128, dtype=torch.long)), caches)
    assert cached_values(node) == sum(tensor.numel() for tensor in caches.tensors())
