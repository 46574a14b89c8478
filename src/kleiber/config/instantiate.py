"""Builds the objects that config nodes describe; every model, run, study and design is built here.

A config contains what a user sets. Values that only the run has, such as the size of the vocabulary, are `SUPPLIED`:
`build` passes them by name to every target whose signature has an argument of that name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ConfigError
from kleiber.config.signatures import signature
from kleiber.types import Config

# Arguments that only a run can supply; the check rejects a config that sets one of them.
SUPPLIED = frozenset(
    {
        "batch_tokens", "branch_steps", "config_hash", "corpus", "evaluate", "folder", "group", "open_model", "record",
        "run_config", "run_id", "run_name", "vocabulary", "vocab_size",
    }
)  # fmt: skip


def build(node: DictConfig | Config, **available: Any) -> Any:
    """Returns the object of a node, which gets those of the `available` values that its signature has arguments for.

    Raises ConfigError, and imports and builds nothing, where the node holds a class that a config may not name, or an
    interpolation: those of a command line are resolved by then, and those of a file may be a stranger's.
    """
    assert available.keys() <= SUPPLIED, f"add to SUPPLIED: {sorted(available.keys() - SUPPLIED)}"
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    check_buildable(plain)
    assert isinstance(plain, dict)
    parameters = inspect.signature(get_object(plain["_target_"])).parameters
    # The values go to the target directly: within a config, OmegaConf would convert dataclasses.
    target = instantiate(plain, _convert_="all", _partial_=True)
    return target(**{name: value for name, value in available.items() if name in parameters})


def check_buildable(value: object, path: str = "") -> None:
    """Checks a node of the config and everything below it.

    value  the node: a mapping, a list or a plain value
    path   key of the node in the config, such as model.mlp, which the error names; "" for the whole config

    Raises ConfigError for a `_target_` that a config may not name and for an interpolation `${...}`.
    """
    children: Iterable[tuple[object, object]] = enumerate(value) if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping):
        children = value.items()
        if "_target_" in value:
            signature(str(value["_target_"]))
    for key, child in children:
        check_buildable(child, f"{path}.{key}" if path else str(key))
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{path}={value} is an interpolation: write the value itself")
