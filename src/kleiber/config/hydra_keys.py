"""The keys of a node that Hydra reads itself: how an object is built, not what its arguments are.

Each has the one value with which kleiber can use the object, so a config that sets another one is refused here. Hydra
would fail when it builds the node, or build an object that is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from kleiber.config.errors import ConfigError
from kleiber.config.targets import class_attribute

TARGET, PARTIAL, RECURSIVE = "_target_", "_partial_", "_recursive_"
HYDRA_KEYS = (TARGET, PARTIAL, RECURSIVE, "_convert_", "_args_")


def check_hydra_keys(path: str, node: Mapping[str, object], annotation: object) -> None:
    """Raises ConfigError where a node sets one of Hydra's keys to a value with which it cannot be built.

    path        key of the node in the config, such as model.mlp, which the error names
    annotation  type of the argument that the node is the value of; None for a node that is no argument
    """
    required = {RECURSIVE: False} if class_attribute(str(node[TARGET]), "keeps_nodes") else {}
    if is_factory(annotation):
        required[PARTIAL] = True
    free = {PARTIAL} if annotation is Any else set()
    for key in HYDRA_KEYS[1:]:
        value = node.get(key)
        if key in required and value is not required[key]:
            needed = str(required[key]).lower()
            fix = "do not change it" if key in node else f"add `{key}: {needed}` to the file of the choice"
            raise ConfigError(f"{path}.{key}={value} must be {needed}: {fix}")
        if key in node and key not in required and not (key in free and isinstance(value, bool)):
            raise ConfigError(f"{path}.{key}={value} is a key of Hydra that kleiber does not use here: remove it")


def is_factory(annotation: object) -> bool:
    """Whether a value of this type is called to make further objects, such as the layers of a model."""
    if annotation is Callable or get_origin(annotation) is Callable:
        return True
    return any(is_factory(part) for part in get_args(annotation))
