"""The keys of train.yaml that are plain values or plain nodes, with their types: what a config is checked against.

Nodes with a `_target_` are checked against the signature of their class instead. Nothing here computes.

Refuses a composed config that cannot be right, naming key and cure, before torch is imported or data touched.

Names and types of every `_target_` come from its signature, those of plain nodes from `kleiber.config.check`. A number
in quotes is not a number and `true` is not 1. What depends on two keys is in `kleiber.config.cross_checks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kleiber.config.budget import Budget, quantity
from kleiber.config.cross_checks import fit_together
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.signatures import SUPPLIED, Parameter, Signature, of_dataclass, signature
from kleiber.config.stages import built_trained, from_weights, is_chain, stage_configs


@dataclass(frozen=True)
class BatchSize:
    """The batch of one optimizer step.

    tokens  of one optimizer step over all ranks, where its rows are full; a pair has two rows
    micro   sequences at once on one device; "auto" finds what fits
    """

    tokens: int | float | str = 4096
    micro: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if quantity(self.tokens) % 1:
            raise ValueError(f"batch.tokens={self.tokens} is not a whole number of tokens")
        if self.micro != "auto" and self.micro < 1:
            raise ValueError(f"batch.micro={self.micro}: write auto, or a number of sequences from 1")


@dataclass(frozen=True)
class Evaluation:
    """When to validate, and on how much.

    every_steps   None means four times a stage, 0 after its last step only
    tokens        targets of each task
    watch_tokens  targets of each task, which are scored at steps 1, 2, 4, 8, ... of a later stage too
    """

    every_steps: int | None = None
    tokens: int | float | str | None = "1M"
    watch_tokens: int | float | str = 32768

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 0:
            raise ValueError(f"eval.every_steps={self.every_steps}: write null, 0, or a number of steps from 1")
        for name, value in (("tokens", self.tokens), ("watch_tokens", self.watch_tokens)):
            try:
                if value is not None:
                    quantity(value)
            except ValueError as error:
                raise ValueError(f"eval.{name}: {error}") from None


PLAIN: dict[str, Any] = {
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


def check(config: Mapping[str, Any], follows: bool = False) -> None:
    """Raises ConfigError for the first thing in a resolved config that no run could mean.

    follows  whether it is the config of a stage that begins with the weights of another
    """
    for key in config:
        if key not in TOP_LEVEL:
            raise ConfigError(f"{key}: no such key.{did_you_mean(key, TOP_LEVEL)} Keys: {', '.join(TOP_LEVEL)}")
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
    fit_together(config)
    if is_chain(config):
        _check_chain(config)
    elif config.get("retention") and not (follows or from_weights(config) or built_trained(config["model"])):
        raise ConfigError(
            f"retention={list(config['retention'])} has nothing to retain: start from weights "
            "(init=checkpoint init.path=RUN), or train a chain (stages=docs_then_code)"
        )


def _check_chain(config: Mapping[str, Any]) -> None:
    """Every stage, as the run that it would be alone."""
    for number, (name, one) in enumerate(stage_configs(config).items()):
        try:
            check(one, follows=number > 0)
        except ConfigError as error:
            raise ConfigError(f"stages.chain.{name}: {error}") from None


def _check_dry_run(value: bool | str) -> None:
    if isinstance(value, str) and not (value.endswith(".json") and Path(value).absolute().parent.is_dir()):
        raise ConfigError(f"dry_run={value} must be true, false, or the name of a .json file in a folder that exists")


def _check_plain(key: str, kind: Any, value: Any) -> None:
    if not hasattr(kind, "__dataclass_fields__"):
        return _check_type(key, kind, value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value}: it has keys of its own: {', '.join(kind.__dataclass_fields__)}")
    _check_arguments(key, of_dataclass(kind), value)
    try:
        kind(**value)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_chosen(key: str, value: Any) -> None:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise ConfigError(f"{key} is {value}: choose one with {key}=NAME (see --help)")
    _check_node(key, value)


def _check_optional(key: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value}: no such choice of {key}")
    if "_target_" in value:
        return _check_node(key, value)
    _check_named(key, value)


def _check_named(key: str, value: Any) -> None:
    """A node of nodes, each under a name of its own: callbacks, logger."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value}: no such choice of {key}")
    known = [name for name, node in value.items() if isinstance(node, Mapping) and "_target_" in node]
    for name, node in value.items():
        if name in known:
            _check_node(f"{key}.{name}", node)
        elif node is not None:
            raise ConfigError(f"{key}.{name}: nothing of that name is here.{did_you_mean(name, known)} Here: {known}")


def _check_node(path: str, node: Mapping[str, Any]) -> None:
    try:
        known = signature(str(node["_target_"]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    arguments = {name: value for name, value in node.items() if name not in SPECIAL}
    _check_arguments(path, known, arguments)
    if not node.get("_partial_") and "_args_" not in node:
        for name, parameter in known.parameters.items():
            if parameter.required and name not in arguments and name not in SUPPLIED:
                raise ConfigError(f"{path} needs {name}: set {path}.{name}=")


def _check_arguments(path: str, known: Signature, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        parameter = known.parameters.get(name)
        if parameter is None and not known.open:
            raise ConfigError(f"{path}.{name}: {unknown(known, name, value)}")
        if name in SUPPLIED and not path.startswith("data"):
            raise ConfigError(f"{path}.{name}: the run itself supplies {name}; it cannot be set")
        _check_value(f"{path}.{name}", parameter or Parameter(), value)


def unknown(known: Signature, name: str, value: Any) -> str:
    """What to say of an argument that a target does not take."""
    takes = [argument for argument in known.parameters if argument not in SUPPLIED]
    told = f"{known.name} has no argument {name!r}"
    if isinstance(value, Mapping) and "_target_" in value:
        return f"{told}, so the choice of a {name} is used by nothing.{did_you_mean(name, takes)}"
    return f"{told}.{did_you_mean(name, takes)} It takes: {', '.join(takes) or 'nothing'}"


def _check_value(path: str, parameter: Parameter, value: Any) -> None:
    """A node is checked for itself and not against the type of the argument, of which its class is an instance."""
    if not _check_nodes_within(path, value):
        _check_type(path, parameter.annotation, value)


def _check_nodes_within(path: str, value: Any) -> bool:
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
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _check_type(path: str, annotation: Any, value: Any) -> None:
    """Strict JSON: a list serves as a tuple and text as a path, but text is no number and a bool no int."""
    try:
        _adapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wanted = dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors(include_url=False))
        raise ConfigError(f"{path}={value}: it should be {' or '.join(wanted)} (got {type(value).__name__})") from None
