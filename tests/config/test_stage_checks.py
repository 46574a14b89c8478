"""Settings of a stage that would have no effect or no sense are refused, with the key to set."""

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.stage_checks import check_stage

COMPOSER = Composer()


def compose(overrides: str) -> dict:
    return resolve_config(COMPOSER.compose(overrides.split()))[0]


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        ("retention=ewc", ["retention=['ewc']", "init=checkpoint"]),
        ("adapter=lora", ["adapter=lora", "random", "init=checkpoint"]),
        ("adapter=dora", ["adapter=dora", "stages=docs_then_code"]),
        ("budget.stop_at_loss=6 eval.every_steps=0", ["budget.stop_at_loss=6", "eval.every_steps=0", "null"]),
        ("eval.every_tokens=1M", ["eval.every_tokens=1M", "evals=[perplexity]"]),
    ],
)
def test_what_would_have_no_effect_is_refused(overrides, values):
    with pytest.raises(ConfigError) as caught:
        check_stage(compose(overrides))
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "adapter=lora init=checkpoint init.path=RUN",
        "adapter=freeze adapter.freeze=[embedding]",  # random features
        "budget.stop_at_loss=6 eval.every_steps=5",
        "budget.stop_at_loss=6",
        "eval.every_tokens=1M evals=[perplexity]",
    ],
)
def test_what_has_an_effect_passes(overrides):
    check_stage(compose(overrides))


def test_a_stage_after_another_has_trained_weights():
    check_stage(compose("adapter=lora retention=ewc"), follows=True)
