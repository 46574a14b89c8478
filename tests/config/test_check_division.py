"""What cannot be divided over devices is refused, and the error names the keys."""

import pytest

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError

COMPOSER = Composer()
REFUSED = [
    ("trainer=expert", ["trainer=expert", "model=moe"]),
    ("trainer=expert model=moe trainer.devices=4 model.mlp.num_experts=6", ["num_experts=6", "trainer.devices=4"]),
    ("trainer.devices=2", ["trainer.devices=2", "trainer=ddp"]),
    ("trainer=fsdp trainer.devices=1", ["trainer.devices=1", "trainer=fsdp"]),
    ("trainer=expert model=moe trainer.compile=true", ["trainer.compile=true", "trainer=expert"]),
    ("trainer=expert model=moe stages=docs_then_code retention=[ewc]", ["retention=ewc", "trainer=expert"]),
    ("trainer=expert model=moe adapter=lora", ["adapter=lora", "trainer=expert"]),
]


def compose(overrides: str) -> dict:
    return resolve_config(COMPOSER.compose(overrides.split()))[0]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "values"), REFUSED, ids=[overrides for overrides, _ in REFUSED])
def test_the_error_names_what_does_not_work_with_the_trainer(overrides, values):
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides))
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "trainer=expert model=moe trainer.devices=4 model.mlp.num_experts=6 model.mlp.granularity=2",
        "trainer=expert model=moe optimizer=muon callbacks=[default,ema] adapter=freeze",
    ],
)
def test_what_can_be_divided_passes(overrides):
    check(compose(overrides))
