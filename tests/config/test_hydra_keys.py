"""Keys that Hydra reads itself are refused where kleiber cannot build the node with them."""

from collections.abc import Callable
from typing import Any

import pytest

from kleiber.config.errors import ConfigError
from kleiber.config.hydra_keys import check_hydra_keys, is_factory

NODE = {"_target_": "kleiber.nn.SwiGLU"}


@pytest.mark.parametrize("key", ["_convert_", "_args_", "_partial_", "_recursive_"])
def test_a_key_of_hydra_is_refused_by_name(key):
    with pytest.raises(ConfigError, match=f"model.mlp.{key}"):
        check_hydra_keys("model.mlp", {**NODE, key: True}, None)
    check_hydra_keys("model.mlp", NODE, None)


def test_a_factory_must_be_partial_and_anything_may_be():
    with pytest.raises(ConfigError, match="_partial_"):
        check_hydra_keys("model.mlp", NODE, Callable[..., object])
    for annotation in (Callable[..., object], Any):
        check_hydra_keys("model.mlp", {**NODE, "_partial_": True}, annotation)
    assert is_factory(Callable[..., object] | None) and not is_factory(int)
