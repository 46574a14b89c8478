"""Formulas of model sizes against real models: parameters exactly, FLOPs up to rounding."""

import pytest
from omegaconf import OmegaConf

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.targets import build
from kleiber.models.counting import count_parameters, training_flops
from kleiber.studies.designs.sizes import BYTES_VOCABULARY, size, vocabulary_of

CHOICES = [
    [], ["model.depth=3", "model.width=96", "model.num_heads=6"], ["model/mlp=gelu"], ["model/attention=none"],
    ["model/attention=window"], ["model.tied=false"], ["model.num_heads=4", "model.num_kv_heads=2"],
    ["model=bert", "objective=mlm"], ["model=moe"], ["model=moe", "model.mlp.every=2", "model.mlp.num_shared=1"],
    ["model.qk_norm=false"], ["model=bert", "objective=mlm", "model/attention=window"],
]  # fmt: skip
COMPOSER = Composer()


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_a_size_is_that_of_the_model(choice):
    node = resolve_config(COMPOSER.compose(["model.context=128", *choice]))[0]["model"]
    model = build(OmegaConf.create(node), vocab_size=BYTES_VOCABULARY)
    real, expected = count_parameters(model), size(node, BYTES_VOCABULARY)
    assert (expected.total, expected.active, expected.non_embedding) == (real.total, real.active, real.non_embedding)
    assert expected.flops_per_token == pytest.approx(training_flops(model, 128), rel=1e-12)


def test_what_has_no_formula_is_refused():
    with pytest.raises(ValueError, match=r"model\.|data\."):
        size({"mlp": {"_target_": "kleiber.nn.other.Thing"}}, 272)
    with pytest.raises(ValueError, match="tokenizer"):
        vocabulary_of({"tokenizer": "gpt2"})
    assert vocabulary_of({"tokenizer": "bpe", "vocab_size": 1000}) == 1008
