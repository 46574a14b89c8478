"""A `model` node is refused where its layers cannot be built, and where the model and its attention disagree."""

import pytest
import torch
from hydra.utils import instantiate

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.layer_checks import check_layers

COMPOSER = Composer()
IMPOSSIBLE = {
    "model/attention=latent model.qk_norm=true": "remove model.qk_norm=true",
    "model/attention=latent model.num_kv_heads=1": "remove model.num_kv_heads=1",
    "model/attention=latent model.width=36": "a multiple of 4 channels",
    "model=bert model/attention=delta": "model.causal=false",
    "model/attention=delta model.positions=alibi": "remove model.positions=alibi",
    "model/attention=none model.num_heads=2": "remove model.num_heads=2",
    "model.positions=learned model.rope_theta=500": "model.rope_theta=500 needs",
    "model/attention=latent model.positions=none model.rope_theta=500": "model.rope_theta=500 needs",
    "model/attention=pattern model.depth=1": "model.depth=1",
    "model.attention.num_heads=3": "model.attention.num_heads=3 must divide",
    "model.width=200": "model.width=200 must be a multiple of 64",
    "model.width=36 model.num_heads=4": "change model.num_heads",
    "model=moe model.mlp.k=1": "model.mlp.k=1 leaves the router TopK",
    "model=moe model/router=lossfree model.mlp.k=1": "model.mlp.k=1 leaves the router LossFree",
    "model=moe model.mlp.every=3": "model.mlp.every=3",
    "model=moe model.mlp.dense_first=2": "model.mlp.dense_first=2",
    "model=moe model.mlp.capacity_factor=1.25 model/router=hash": "model.mlp.capacity_factor=1.25",
    "model=moe model/router=group_limited model.mlp.router.groups=3": "model.mlp.router.groups=3",
    "model=moe model/router=group_limited model.mlp.router.limit=1 model.mlp.k=4": "model.mlp.router.limit=1",
}
PATTERNED = "model/attention=pattern model.depth=3 model.attention.pattern="
WITHOUT_EFFECT = {
    PATTERNED + "[delta,none] model.num_kv_heads=1": "model.num_kv_heads=1",
    PATTERNED + "[delta] model.qk_norm=false": "model.qk_norm=false",
    PATTERNED + "[none] model.num_heads=7": "model.num_heads=7",
    PATTERNED + "[none] model.positions=alibi model.rope_theta=500": "model.rope_theta=500 and model.positions=alibi",
    PATTERNED + "[delta] +model.attention.soft_cap=30": "model.attention.soft_cap=30",
    PATTERNED + "[latent,none] +model.attention.value_residual=true": "model.attention.value_residual=true",
    PATTERNED + "[delta,full] model.attention.window.window=16": "model.attention.window.window=16",
    PATTERNED + "[full,delta,none] +model.attention.value_residual=true": "model.depth=3",
    "model.depth=1 model.attention.value_residual=true": "model.depth=1",
}
POSSIBLE = [
    PATTERNED + "[full,latent] +model.attention.value_residual=true",
    PATTERNED + "[delta,none] model.positions=learned",
    PATTERNED + "[delta,full] model.qk_norm=false model.num_kv_heads=1",
    "model.depth=1 model.future=1 model.attention.value_residual=true",
    "model.positions=rotary model.rope_theta=500",
    "model/attention=hybrid model.positions=alibi model.num_heads=4",
    "model/attention=pattern model.depth=3 model.attention.pattern=[full,none] +model.attention.value_residual=true",
    "model.num_heads=2 model.attention.num_heads=2",
    "model=moe model.mlp.k=1 model.mlp.granularity=2",
    "model=moe model.mlp.k=1 model/router=switch",
    "model.width=36 model.num_heads=4 model.positions=learned",
]
DISAGREEMENTS = {
    "model.num_heads=2 model.attention.num_heads=4": "model.num_heads=2 and model.attention.num_heads=4 contradict",
    "model.qk_norm=true model.attention.qk_norm=false": "model.qk_norm=true and model.attention.qk_norm=false",
    "model/attention=pattern model.qk_norm=true +model.attention.window.qk_norm=false": "attention.window.qk_norm",
}


def node(overrides: str) -> dict:
    return resolve_config(COMPOSER.compose(overrides.split()))[0]["model"]


def build(model: dict) -> None:
    with torch.device("meta"):
        instantiate(model, vocab_size=16)


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "text"), IMPOSSIBLE.items())
def test_what_cannot_be_built_is_refused_before(overrides, text):
    model = node(overrides)
    with pytest.raises(ConfigError, match="model") as caught:
        check_layers(model)
    assert text in str(caught.value)
    with pytest.raises(Exception, match=r"model|heads|positions"):
        build(model)


@pytest.mark.parametrize(("overrides", "settings"), WITHOUT_EFFECT.items())
def test_options_that_no_layer_would_read_are_refused(overrides, settings):
    with pytest.raises(ConfigError, match="no effect") as caught:
        check_layers(node(overrides))
    assert settings in str(caught.value)


def test_the_values_of_a_latent_layer_cannot_be_mixed():
    model = node(PATTERNED + "[full,latent]")
    model["attention"]["latent"] = {"_target_": "kleiber.nn.LatentAttention", "value_residual": True}
    with pytest.raises(ConfigError, match=r"remove model\.attention\.latent\.value_residual=true"):
        check_layers(model)


@pytest.mark.parametrize("overrides", POSSIBLE)
def test_what_can_be_built_passes(overrides):
    model = node(overrides)
    check_layers(model)
    build(model)


@pytest.mark.parametrize(("overrides", "text"), DISAGREEMENTS.items())
def test_an_option_is_not_set_to_two_values(overrides, text):
    with pytest.raises(ConfigError) as caught:
        check_layers(node(overrides))
    assert text in str(caught.value)
