"""Checks a composed config before torch is imported or data is read. Errors name the key and the fix.

The arguments of a node with a `_target_` are checked against the signature of its class, and plain nodes against the
dataclasses below. Types are strict: a number in quotes is not a number, and `true` is not 1. Rules about several keys
are in `kleiber.config.cross_checks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kleiber.config.cross_checks import check_compatibility
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.stages import Budget, has_pretrained_weights, is_chain, quantity, stage_configs, starts_from_weights
from kleiber.config.targets import SUPPLIED, Parameter, Signature, runtime_signature, signature
from kleiber.types import Config


@dataclass(frozen=True)
class BatchSize:
    """The batch of an optimizer step.

    tokens  tokens of an optimizer step over all ranks if its rows are full; a pair of answers has two rows
    micro   sequences that a device processes at once; "auto": as many as fit in memory
    """

    tokens: int | float | str = 4096
    micro: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if quantity(self.tokens) % 1:
            raise ValueError(f"batch.tokens={self.tokens} must be a whole number of tokens")
        if self.micro != "auto" and self.micro < 1:
            raise ValueError(f"batch.micro={self.micro} must be auto or >= 1")


@dataclass(frozen=True)
class Evaluation:
    """When to validate, and on how many tokens.

    every_steps   optimizer steps between validations; null: four times a stage, 0: only after the last step
    tokens        validation targets of each task; null: all of them
    watch_tokens  validation targets of each earlier task that a later stage also scores at steps 1, 2, 4, 8, ...
    """

    every_steps: int | None = None
    tokens: int | float | str | None = "1M"
    watch_tokens: int | float | str = 32768

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 0:
            raise ValueError(f"eval.every_steps={self.every_steps} must be null or >= 0")
        for name, value in (("tokens", self.tokens), ("watch_tokens", self.watch_tokens)):
            try:
                if value is not None:
                    quantity(value)
            except ValueError as error:
                raise ValueError(f"eval.{name}: {error}") from None


PLAIN: dict[str, type | UnionType] = {
    "name": str,
    "root": str,
    "seed": int,
    "resume": str,
    "dry_run": bool | str,
    "batch": BatchSize,
    "budget": Budget,
    "eval": Evaluation,
}
NODES = ("model", "data", "objective", "trainer", "optimizer", "schedule", "callbacks", "logger", "launcher")
OPTIONAL = ("init", "retention", "adapter", "stages", "design", "study", "experiment")
TOP_LEVEL = (*NODES, *PLAIN, *OPTIONAL)
SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def check(config: Config, follows: bool = False) -> None:
    """Raises ConfigError for the first error in a resolved config.

    follows  whether this is the config of a stage that starts from the weights of an earlier stage
    """
    for key in config:
        if key not in TOP_LEVEL:
            raise ConfigError(unknown_key(key, key))
    for key, kind in PLAIN.items():
        if key not in config:
            raise ConfigError(f"{key} is missing: it must not be deleted")
        _check_plain(key, kind, config[key])
    _check_dry_run(config["dry_run"])
    for key in NODES:
        if key in ("callbacks", "logger"):
            _check_named(key, config.get(key))
        else:
            _check_chosen(key, config.get(key))
    for key in OPTIONAL:
        _check_optional(key, config.get(key))
    check_compatibility(config)
    if is_chain(config):
        _check_chain(config)
    elif config.get("retention") and not (
        follows or starts_from_weights(config) or has_pretrained_weights(config["model"])
    ):
        raise ConfigError(
            f"retention={list(config['retention'])} needs weights that were trained before: set init=checkpoint "
            "init.path=RUN, or train several stages with stages=docs_then_code"
        )


def unknown_key(key: str, top: str) -> str:
    """Returns the error message for a key whose first part `top` is not a key of the config."""
    return f"{key} is not a key of the config.{did_you_mean(top, TOP_LEVEL)} Keys: {', '.join(TOP_LEVEL)}"


def _check_chain(config: Config) -> None:
    """Checks the config of every stage like that of a run."""
    for number, (name, stage) in enumerate(stage_configs(config).items()):
        try:
            check(stage, follows=number > 0)
        except ConfigError as error:
            raise ConfigError(f"stages.chain.{name}: {error}") from None


def _check_dry_run(value: bool | str) -> None:
    if isinstance(value, str) and not (value.endswith(".json") and Path(value).absolute().parent.is_dir()):
        raise ConfigError(f"dry_run={value} must be true, false, or the path of a .json file in an existing folder")


def _check_plain(key: str, kind: type | UnionType, value: object) -> None:
    if isinstance(kind, UnionType) or not is_dataclass(kind):
        return _check_type(key, kind, value)
    if not isinstance(value, Mapping):
        names = ", ".join(field.name for field in fields(kind))
        raise ConfigError(f"{key}={value} must be a mapping with the keys {names}")
    _check_arguments(key, runtime_signature(kind, kind.__name__), value)
    try:
        kind(**value)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_chosen(key: str, value: object) -> None:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise ConfigError(f"{key}={value} must be a choice of the group: set {key}=NAME (--help lists the names)")
    _check_node(key, value)


def _check_optional(key: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value} is not a choice of the group {key} (--help lists the choices)")
    if "_target_" in value:
        return _check_node(key, value)
    _check_named(key, value)


def _check_named(key: str, value: object) -> None:
    """Checks a node that holds named nodes, such as callbacks or logger."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value} is not a choice of the group {key} (--help lists the choices)")
    names = [name for name, node in value.items() if isinstance(node, Mapping) and "_target_" in node]
    for name, node in value.items():
        if name in names:
            _check_node(f"{key}.{name}", node)
        elif node is not None:
            near = did_you_mean(name, names)
            raise ConfigError(f"{key}.{name}: {name} is not among the chosen {key}.{near} Chosen: {', '.join(names)}")


def _check_node(path: str, node: Config) -> None:
    try:
        target = signature(str(node["_target_"]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    arguments = {name: value for name, value in node.items() if name not in SPECIAL}
    _check_arguments(path, target, arguments)
    if not node.get("_partial_") and "_args_" not in node:
        for name, parameter in target.parameters.items():
            if parameter.required and name not in arguments and name not in SUPPLIED:
                raise ConfigError(f"{path}.{name} must be set: there is no default for it")


def _check_arguments(path: str, target: Signature, arguments: Config) -> None:
    for name, value in arguments.items():
        parameter = target.parameters.get(name)
        if parameter is None and not target.open:
            raise ConfigError(f"{path}.{name}: {unknown_argument(target, name, value)}")
        if name in SUPPLIED and not path.startswith("data"):
            raise ConfigError(f"{path}.{name} cannot be set: the run determines it")
        _check_value(f"{path}.{name}", parameter or Parameter(), value)


def unknown_argument(target: Signature, name: str, value: object) -> str:
    """Returns the error message for an argument that a class does not have."""
    takes = [argument for argument in target.parameters if argument not in SUPPLIED]
    message = f"{target.name} has no argument {name!r}"
    if isinstance(value, Mapping) and "_target_" in value:
        return f"{message}, so the choice of a {name} has no effect: remove it.{did_you_mean(name, takes)}"
    return f"{message}.{did_you_mean(name, takes)} Its arguments: {', '.join(takes) or 'none'}"


def _check_value(path: str, parameter: Parameter, value: object) -> None:
    """Checks a nested node by its own signature, and any other value by the type of the argument."""
    if not _check_nodes_within(path, value):
        _check_type(path, parameter.annotation, value)


def _check_nodes_within(path: str, value: object) -> bool:
    """Checks the nodes in a value, at any depth; returns whether there are any."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            _check_node(path, value)
            return True
        nodes = [_check_nodes_within(f"{path}.{name}", item) for name, item in value.items()]
        return any(nodes)
    if isinstance(value, list):
        nodes = [_check_nodes_within(f"{path}[{i}]", item) for i, item in enumerate(value)]
        return any(nodes)
    return False


@cache
def _adapter(annotation: Any) -> TypeAdapter[object]:
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _check_type(path: str, annotation: object, value: object) -> None:
    """Raises ConfigError unless `value` has the annotated type, as JSON.

    A list is accepted for a tuple, and text for a path. No other conversion is: text is not accepted for a number, nor
    a number for text, nor true for 1.
    """
    try:
        _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        expected = dict.fromkeys(
            item["msg"].removeprefix("Input should be ") for item in error.errors(include_url=False)
        )
        raise ConfigError(f"{path}={value} must be {' or '.join(expected)} (got {type(value).__name__})") from None
