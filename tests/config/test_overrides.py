"""Overrides that replace each other on one command line. FAULTS 109."""

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.overrides import null_first, refuse_without_effect

COMPOSER = Composer()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("budget.ratio.zz=1 budget.steps=60", "budget.ratio.zz=1"),
        ("budget.steps=60 budget.ratio.zz=1", "budget.ratio.zz=1"),
        ("model.mlp.hidden=8 model.mlp=null", "model.mlp.hidden=8"),
        ("callbacks.log.every=3 callbacks.log=null", "callbacks.log.every=3"),
        ("eval.tokens.a.b=3 eval.tokens=1K", "eval.tokens.a.b=3"),
        ("optimizer.lr.x=1 optimizer.lr=0.1", "optimizer.lr.x=1"),
    ],
)
def test_a_key_that_another_override_takes_away_is_refused_by_name(overrides, named):
    with pytest.raises(ConfigError) as error:
        resolve_config(COMPOSER.compose(overrides.split()))
    assert named in str(error.value) and "remove" in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "budget.steps=60", "model=moe model.mlp.k=1 +model.depth=3", "callbacks=null", "~callbacks.samples",
        "callbacks.log=null", "design.arms={a:{},b:{model.depth:2}}", "trainer=smoke trainer.max_steps=3",
        "model.mlp={} model.mlp.hidden=8", "stages.chain={one:{},two:{}}",
    ],
)  # fmt: skip
def test_overrides_with_an_effect_are_composed(overrides):
    resolve_config(COMPOSER.compose(overrides.split()))


def test_the_override_that_replaces_a_key_is_named():
    with pytest.raises(ConfigError, match=r"a\.b=1 has no effect, since a=null replaces"):
        refuse_without_effect(["++a.b=1", "++a=null", "data=text", "~c"], {"a": None})
    refuse_without_effect(["++a.b=1", "hydra.mode=RUN"], {"a": {"b": None}})


def test_a_null_is_put_in_front_of_the_override_that_could_not_be_merged_and_only_once():
    lines = ["++a=[1]", "++b={}"]
    cleared = null_first(lines, "Error merging override ++a=[1]\nreason")
    assert cleared == ["a=null", "++a=[1]", "++b={}"]
    assert null_first(cleared, "Error merging override ++a=[1]\nreason") is None
    assert null_first(lines, "another error") is None
