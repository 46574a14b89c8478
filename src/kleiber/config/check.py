"""Checks a composed config before torch is imported or data is read. Errors name the key and the fix.

The arguments of a node with a `_target_` are checked against the signature of its class, and plain nodes against the
dataclasses below. Types are strict: a number in quotes is not a number, and `true` is not 1. Rules about several keys
are in `cross_checks`. The machine must have the devices of `trainer`, and a model must be divisible over them; torch is
imported only to count the GPUs of a machine that has some.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from annotated_types import Le, MaxLen, MinLen, MultipleOf

from kleiber.config.cost import Cost
from kleiber.config.cross_checks import check_compatibility
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.extensions import Parameter, Signature, runtime_signature
from kleiber.config.hydra_keys import HYDRA_KEYS, PARTIAL, check_hydra_keys
from kleiber.config.stage_checks import adds_weights, check_stage
from kleiber.config.stages import Budget, Quantity, is_chain, stage_configs
from kleiber.config.targets import SUPPLIED, argument, class_attribute, signature
from kleiber.config.words import PACKAGE, choices_with, in_our_words, package_of
from kleiber.types import Config, Count, Natural, Seed

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}  # of the constraints of annotated_types, in errors


def check_division(config: Config, planned: bool = False) -> None:
    """Raises ConfigError for devices that there are not, and for what does not work with trainer=expert.

    planned  whether the run is only planned, as of GPUs that this machine does not have
    """
    trainer = config["trainer"]
    _check_devices(trainer, planned)
    if not class_attribute(trainer["_target_"], "divides_experts"):
        return
    devices = argument(trainer, "devices")
    _check_experts(config["model"], devices)
    refused = {
        "trainer.compile=true": argument(trainer, "compile"),
        f"retention={'+'.join(config.get('retention') or {})}": any((config.get("retention") or {}).values()),
        "adapter=lora or dora": adds_weights(config.get("adapter")),
    }
    for key, chosen in refused.items():
        if chosen and devices > 1:
            raise ConfigError(
                f"{key} does not work with the divided experts of trainer=expert: remove it, or set trainer=ddp"
            )


def _check_devices(trainer: Config, planned: bool) -> None:
    devices = argument(trainer, "devices")
    if class_attribute(trainer["_target_"], "is_distributed") is False and devices != 1:
        raise ConfigError(f"trainer.devices={devices} needs a distributed trainer: set trainer=ddp")
    if class_attribute(trainer["_target_"], "shards_weights") and devices < 2:
        raise ConfigError(f"trainer.devices={devices} must be >= 2 for trainer=fsdp")
    if argument(trainer, "accelerator") == "gpu" and not planned and not _has_gpu():
        raise ConfigError("trainer.accelerator=gpu, but this machine has no GPU: set trainer.accelerator=cpu")


def _has_gpu() -> bool:
    """Whether this machine has a GPU. Looks for device files first, because importing torch is slow."""
    if (
        sys.platform == "linux"
        and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
        and any(Path("/dev").glob("nvidia[0-9]*"))
    ):
        return True
    import torch

    return torch.cuda.is_available()


def _check_experts(model: Config, devices: int) -> None:
    mlp = model.get("mlp")
    mlp = mlp if isinstance(mlp, Mapping) and "_target_" in mlp else {"_target_": "kleiber.nn.SwiGLU"}
    experts = argument(mlp, "num_experts")
    if experts is None:
        raise ConfigError(
            "trainer=expert divides the experts of a mixture over the devices, and this model has none: set model=moe, "
            "or trainer=ddp"
        )
    granularity = argument(mlp, "granularity") or 1
    if experts * granularity % devices:
        parts = f" x model.mlp.granularity={granularity}" if granularity > 1 else ""
        raise ConfigError(
            f"model.mlp.num_experts={experts}{parts} must be a multiple of trainer.devices={devices} for trainer=expert"
        )


@dataclass(frozen=True)
class BatchSize:
    """The batch of an optimizer step.

    tokens  tokens of an optimizer step over all ranks if its rows are full; a pair of answers has two rows
    micro   sequences that a device processes at once; "auto": as many as fit in memory
    """

    tokens: Annotated[Quantity, Le(10**9), MultipleOf(1)] = 4096
    micro: Count | Literal["auto"] = "auto"


@dataclass(frozen=True)
class EvalSettings:
    """When to validate, and on how many tokens.

    every_steps   optimizer steps between validations; null: at most four a stage, 0: only after the last step
    tokens        validation targets of each task; null: all of them
    watch_tokens  validation targets of each earlier task that a later stage also scores at steps 1, 2, 4, 8, ...
    every_tokens  training tokens between two runs of the evaluations `evals`; null: after the last step only
    """

    every_steps: Natural | None = None
    tokens: Quantity | None = "1M"
    watch_tokens: Quantity = 32768
    every_tokens: Quantity | None = None


PLAIN: dict[str, object] = {
    "name": Annotated[str, MinLen(1), MaxLen(60)],  # a folder, whose name has at most 255 bytes
    "root": str,
    "seed": Seed,
    "resume": str,
    "dry_run": bool | str,
    "batch": BatchSize,
    "budget": Budget,
    "eval": EvalSettings,
    "cost": Cost,
    "allow_data": Sequence[str] | None,
}
LATER_KEYS = ("cost", "allow_data")  # which the config of a run lacks that was recorded before there were these keys
NODES = ("model", "data", "objective", "trainer", "optimizer", "schedule", "callbacks", "logger", "launcher")
OPTIONAL = ("init", "retention", "privacy", "adapter", "evals", "stages", "design", "study", "experiment")
NAMED = ("callbacks", "logger", "retention", "evals")  # groups of several nodes by name
TOP_LEVEL = (*NODES, *PLAIN, *OPTIONAL)


def check(config: Config, follows: bool = False) -> None:
    """Raises ConfigError for the first error in a resolved config.

    follows  whether this is the config of a stage that starts from the weights of an earlier stage
    """
    for key in config:
        if key not in TOP_LEVEL:
            raise ConfigError(unknown_key(key, key, config[key]))
    for key, kind in PLAIN.items():
        if key in LATER_KEYS and key not in config:
            continue
        if key not in config:
            raise ConfigError(f"{key} is missing: it must not be deleted")
        if key == "resume" and not isinstance(config[key], str):
            raise ConfigError(f"resume={config[key]} must be auto, never or the folder of a run")
        check_plain(key, kind, config[key])
    _check_dry_run(config["dry_run"])
    for key in NODES:
        if key in NAMED:
            _check_named(key, config.get(key))
        else:
            check_node(key, require_node(key, config.get(key)))
    for key in OPTIONAL:
        _check_optional(key, config.get(key))
    check_compatibility(config)
    check_division(config, planned=bool(config["dry_run"]))
    if is_chain(config):
        _check_chain(config)
    else:
        check_stage(config, follows)


def unknown_key(key: str, top: str, value: object) -> str:
    """Returns the error message for a key whose first part `top` is not a key of the config, and its value."""
    ours = in_our_words(key, value=value)
    return f"{key} is not a key of the config." + (
        ours or f"{did_you_mean(top, TOP_LEVEL)} Keys: {', '.join(TOP_LEVEL)}"
    )


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


def check_plain(key: str, kind: object, value: object) -> None:
    """Raises ConfigError for a value that is not of `kind`, a type or a dataclass whose arguments the keys are."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return check_type(key, kind, value)
    if not isinstance(value, Mapping):
        names = ", ".join(field.name for field in fields(kind))
        raise ConfigError(f"{key}={value} must be a mapping with the keys {names}")
    check_arguments(key, runtime_signature(kind, kind.__name__), value)
    try:
        kind(**value)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def require_node(key: str, value: object) -> Config:
    """Returns the value if it is a node with a `_target_`; raises ConfigError otherwise."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise ConfigError(f"{key}={value} must be a choice of the group: set {key}=NAME (--help lists the names)")
    return value


def require_mapping(key: str, value: object) -> Config:
    """Returns the value if it is a mapping, and an empty one for None; raises ConfigError otherwise."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value} is not a choice of the group {key} (--help lists the choices)")
    return value or {}


def _check_optional(key: str, value: object) -> None:
    if key not in NAMED and "_target_" in require_mapping(key, value):
        return check_node(key, require_mapping(key, value))
    _check_named(key, value)


def _check_named(key: str, group: object) -> None:
    """Checks a node that holds named nodes, such as callbacks or logger."""
    value = require_mapping(key, group)
    names = [name for name, node in value.items() if isinstance(node, Mapping) and "_target_" in node]
    for name, node in value.items():
        if name in names:
            check_node(f"{key}.{name}", node)
        elif node is not None:
            near = in_our_words(f"{key}.{name}", value=node) or did_you_mean(name, names)
            chosen = f"Chosen: {', '.join(names)}" if names else f"None is chosen: choose one with {key}=NAME first"
            raise ConfigError(f"{key}.{name}: {name} is not among the chosen {key}.{near} {chosen}")


def check_node(path: str, node: Config, annotation: object = None) -> None:
    """Raises ConfigError for a node whose class is not allowed, lacks an argument, or would refuse one.

    path        key of the node in the config, such as study, which the error names
    annotation  type of the argument that the node is the value of; None for a node that is no argument
    """
    try:
        target = signature(str(node["_target_"]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    check_hydra_keys(path, node, annotation)
    arguments = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    check_arguments(path, target, arguments)
    for name in (name for name, parameter in target.parameters.items() if parameter.required and name not in arguments):
        if not node.get(PARTIAL) and name not in SUPPLIED:
            raise ConfigError(f"{path}.{name} must be set: there is no default for it")
        if node.get(PARTIAL) and name in SUPPLIED:
            raise ConfigError(f"{path}: layers get no {name}, which {node['_target_']} needs: they get their site")


def check_arguments(path: str, target: Signature, arguments: Config) -> None:
    """Raises ConfigError for an argument that `target` does not have, or whose value has another type or range.

    path  key of the node that holds the arguments, such as model.mlp, which the error names
    """
    for name, value in arguments.items():
        parameter = target.parameters.get(name)
        if parameter is None and not target.open:
            raise ConfigError(f"{path}.{name}: {unknown_argument(target, name, value, f'{path}.{name}')}")
        if name in SUPPLIED and not path.startswith("data"):
            raise ConfigError(f"{path}.{name} cannot be set: the run determines it")
        _check_value(f"{path}.{name}", parameter or Parameter(), value)


def unknown_argument(target: Signature, name: str, value: object, key: str) -> str:
    """Returns the error message for an argument that a class does not have, at a key of the config."""
    takes = [argument for argument in target.parameters if argument not in SUPPLIED]
    message = f"{target.name} has no argument {name!r}"
    group = key.replace(".", "/")
    if isinstance(value, Mapping) and "_target_" in value:
        if (package := package_of(group)) != key:
            return f"{message}: a file of conf/{group} must begin with the line `{PACKAGE}{package}`"
        return f"{message}, so the choice of a {name} has no effect: remove it.{did_you_mean(name, takes)}"
    if ours := in_our_words(key, value=value):
        return f"{message}.{ours}"
    near, others = did_you_mean(name, takes), choices_with(group.rpartition("/")[0], name)
    if others and not near:
        group = group.rpartition("/")[0]
        near = f" It is a key of {', '.join(f'{group}={name}' for name in others)}."
    return f"{message}.{near} Its arguments: {', '.join(takes) or 'none'}"


def _check_value(path: str, parameter: Parameter, value: object) -> None:
    """Checks a nested node by its own signature, and any other value by the type of the argument."""
    if not _check_nodes_within(path, value, parameter.annotation):
        check_type(path, parameter.annotation, value)


def _check_nodes_within(path: str, value: object, annotation: object) -> bool:
    """Checks the nodes in a value, at any depth; returns whether there are any.

    annotation  type of the argument that has the value, and so of the nodes in it
    """
    if isinstance(value, Mapping):
        if "_target_" in value:
            check_node(path, value, annotation)
            return True
        nodes = [_check_nodes_within(f"{path}.{name}", item, annotation) for name, item in value.items()]
        return any(nodes)
    if isinstance(value, list):
        nodes = [_check_nodes_within(f"{path}[{i}]", item, annotation) for i, item in enumerate(value)]
        return any(nodes)
    return False


@cache
def _adapter(annotation: Any) -> TypeAdapter[object]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))


def check_type(path: str, annotation: object, value: object) -> None:
    """Raises ConfigError unless `value` has the annotated type, as JSON, and lies in the annotated range.

    A list is accepted for a tuple, and text for a path. No other conversion is: text is not accepted for a number, nor
    a number for text, nor true for 1. Numbers must be finite, unless the annotation has pydantic's AllowInfNan.
    """
    from pydantic import AllowInfNan, ValidationError

    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        if AllowInfNan() not in constraints(annotation):
            limits = (f"{SYMBOLS[name]} {limit:.10g}" for name, limit in bounds(annotation))
            required = " and ".join(dict.fromkeys(["finite", *limits]))
            raise ConfigError(f"{path}={value} must be {required}") from None
        text = json.dumps(value)
    try:
        _adapter(annotation).validate_json(text, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        required = " or ".join(dict.fromkeys(map(_requirement, errors)))
        got = "" if all("ctx" in item for item in errors) else f" (got {type(value).__name__})"
        ours = in_our_words(path, choice=str(value))
        raise ConfigError(f"{path}={value} must {required}{got}{'.' if ours else ''}{ours}") from None


def _requirement(error: ErrorDetails) -> str:
    """Returns what an error of pydantic says that a value must be or have."""
    context = error.get("ctx", {})
    for name, symbol in SYMBOLS.items():
        if name in context:
            return f"be {symbol} {context[name]:.10g}"
    message = str(context.get("error", error["msg"]))
    requirement = re.split(" must | should ", message, maxsplit=1)
    return requirement[1] if len(requirement) > 1 else f"be valid: {message}"


def bounds(annotation: object) -> list[tuple[str, float]]:
    """Returns the bounds that an annotation declares, such as ("gt", 0), by the names of annotated_types."""
    declared = [asdict(item) for item in constraints(annotation) if is_dataclass(item) and not isinstance(item, type)]
    return [(name, limit) for item in declared for name, limit in item.items() if name in SYMBOLS and limit is not None]


def constraints(annotation: object) -> list[object]:
    """Returns what `Annotated` adds to a type and to the types within it."""
    parts = get_args(annotation)
    added = list(parts[1:]) if get_origin(annotation) is Annotated else []
    return added + [item for part in parts for item in constraints(part)]
