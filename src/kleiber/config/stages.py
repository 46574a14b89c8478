"""The stages of a run as plain data: their configs, their names and their training budgets. Imports no torch.

A chain lists for each stage the keys whose values differ from those of the run (data, objective, budget, ...).
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.targets import argument, class_attribute
from kleiber.types import Config, Json, Positive

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core.core_schema import CoreSchema

SINGLE_STAGE = "main"  # the name of the stage of a run without a chain
STAGE_KEYS = ("data", "objective", "budget", "schedule", "optimizer", "retention", "adapter", "batch")
LATER_STAGE_KEYS = ("retention", "adapter")  # the run's choice applies to every stage but the first
REPLACED_KEYS = ("budget", *LATER_STAGE_KEYS)  # not merged: their keys exclude one another, or are named nodes
SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
NUMBER = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)([kKMBGT]?)")
DEFAULT_RATIO = 20.0
LIMITS = ("tokens", "flops", "ratio", "steps", "epochs")  # keys of a budget that exclude one another
FILE_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")


def check_name(key: str, name: object) -> None:
    """Raises ConfigError for a name, such as that of a stage, that could lead out of the run's folder as a file name.

    key  config key to which the name belongs
    """
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise ConfigError(
            f"{key}: the name {name!r} may contain only letters, digits and . _ -, must not begin with a dot, and has "
            "at most 100 characters"
        )


def is_chain(config: Config) -> bool:
    """Whether a run has several stages that follow one another."""
    return bool((config.get("stages") or {}).get("chain"))


def starts_from_weights(config: Config) -> bool:
    """Whether the first stage of a run starts from weights that its `init` names."""
    init = config.get("init")
    return bool(init) and not class_attribute(init["_target_"], "is_random")


def stage_configs(config: Config) -> dict[str, Json]:
    """Returns the complete config of each stage by name, in order; a run without a chain has the stage `main`.

    A node with a `_target_` replaces that of the run, and a node without is merged into it, as is budget.stop_at_loss.
    Where every stage has a budget, one of the run is their total (see `split_budget`). Raises ConfigError for a key
    that a stage cannot set, for a name that cannot be that of a folder, and for a total that cannot be split.
    """
    if not is_chain(config):
        return {SINGLE_STAGE: dict(config)}
    stages: dict[str, Json] = {}
    for name, changes in config["stages"]["chain"].items():
        check_name("stages.chain", name)
        if changes is not None and not isinstance(changes, Mapping):
            raise ConfigError(f"stages.chain.{name}={changes} must be a mapping of keys to their values in this stage")
        stage = copy.deepcopy({key: value for key, value in config.items() if key != "stages"}) | {"stages": None}
        if not stages:
            stage |= dict.fromkeys(LATER_STAGE_KEYS)
        for key, value in (changes or {}).items():
            if key not in STAGE_KEYS:
                near = did_you_mean(str(key), STAGE_KEYS)
                allowed = ", ".join(STAGE_KEYS)
                raise ConfigError(f"stages.chain.{name}.{key} must be one of the keys of a stage: {allowed}.{near}")
            stage[key] = value if key in REPLACED_KEYS else merge_nodes(stage.get(key), value)
        if changes and "budget" in changes:
            without_limit = {key: None if key in LIMITS else value for key, value in config["budget"].items()}
            stage["budget"] = without_limit | dict(changes["budget"] or {})
        stages[name] = stage
    for name, share in split_budget(config).items():
        stages[name]["budget"] |= share
    return stages


def split_budget(config: Config) -> dict[str, Json]:
    """Returns the part of each stage of a chain in the budget of the run, in proportion to their own budgets.

    Returns nothing where the run has no budget, or a stage has none: it then has that of the run, as for other keys.
    Raises ConfigError for a run's budget of epochs, and when the budgets of the stages are of different kinds.
    """
    total = _limit("budget", config["budget"])
    of_stages = [
        _limit(f"stages.chain.{name}.budget", (changes or {}).get("budget") or {})
        for name, changes in config["stages"]["chain"].items()
    ]
    limits = [limit for limit in of_stages if limit is not None]
    if total is None or len(limits) < len(of_stages):
        return {}
    kinds = {key for key, _ in limits}
    if len(kinds) > 1:
        raise ConfigError(
            f"budget.{total[0]}={total[1]:g} is the total of all stages, in proportion to their own budgets, which "
            f"must have the same key and have {', '.join(sorted(kinds))}: remove it, or set one key in all stages"
        )
    if total[0] == "epochs" and kinds != {"epochs"}:
        passes = f"budget.epochs={total[1]:g} cannot be divided, because stages pass over different data"
        raise ConfigError(f"{passes}: set budget.tokens, or epochs in the budgets of all stages")
    parts, before, sum_of_own = {}, 0.0, sum(value for _, value in limits)
    for name, (key, value) in zip(config["stages"]["chain"], limits, strict=True):
        start, before = before, before + value
        part = total[1] * value / sum_of_own
        if total[0] == "steps":  # whole numbers, with the sum of the total
            part = max(1, round(total[1] * before / sum_of_own) - round(total[1] * start / sum_of_own))
        parts[name] = {key: None, total[0]: part}
    return parts


def _limit(path: str, budget: Config) -> tuple[str, float] | None:
    """Returns the key that limits a budget, and its value; None for a budget without a limit."""
    limits = [(key, budget[key]) for key in LIMITS if budget.get(key) is not None]
    if not limits:
        return None
    if len(limits) > 1:
        names = " and ".join(f"{path}.{key}={value}" for key, value in limits)
        raise ConfigError(f"{names} exclude each other: set only one")
    try:
        return limits[0][0], quantity(limits[0][1])
    except ValueError as error:
        raise ConfigError(f"{path}.{limits[0][0]}: {error}") from None


def stage_config(config: Config, stage: str) -> Json:
    """Returns the config of a stage; a branch of a tree has the config of the run."""
    return stage_configs(config).get(stage) or dict(config)


def merge_nodes(old: object, new: object) -> object:
    """Returns `new`, merged into `old` where both are mappings and `new` has no `_target_`."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)) or "_target_" in new:
        return new
    return {**old, **{key: merge_nodes(old.get(key), value) for key, value in new.items()}}


def stage_names(config: Config) -> list[str]:
    """Returns the names of the stages of a run, in order."""
    if not (config.get("stages") or {}).get("branches"):
        return list(stage_configs(config))
    return ["trunk", *(name for name, _ in branch_tokens(config["stages"]["branches"]))]


def branch_tokens(branches: Sequence[int | float | str]) -> list[tuple[str, float]]:
    """Returns the name and the training tokens of each branch of a tree, from short to long."""
    return sorted({branch_name(tokens): quantity(tokens) for tokens in branches}.items(), key=lambda branch: branch[1])


def branch_name(tokens: int | float | str) -> str:
    """Returns the name of a branch: its tokens as the user wrote them, and a number of at least a million as `4M`."""
    if isinstance(tokens, str):
        return tokens
    return f"{tokens / 1e6:g}M" if tokens >= 1e6 else f"{tokens:g}"


def trains_tokenizer(config: Config) -> bool:
    """Whether a run trains a tokenizer, which it then stores in its folder."""
    return text_settings(config["data"]).get("tokenizer") == "bpe"


def text_settings(data: Config) -> Json:
    """The node of the text that a data set is made of, with the tokenizer and separator that replace those of the text.

    A data set that is made of no other one is its own text.
    """
    text = data.get("data")
    if not isinstance(text, Mapping):
        return dict(data)
    replaced = {key: data[key] for key in ("tokenizer", "separator") if data.get(key) is not None}
    return text_settings(text) | replaced


def has_pretrained_weights(model: Config) -> bool:
    """Whether a model node builds a model with pretrained weights."""
    return is_wrapped(model) and argument(model, "weights") == "pretrained"


def is_wrapped(model: Config) -> bool:
    """Whether transformers builds the model of a node."""
    return bool(class_attribute(str(model["_target_"]), "is_wrapped"))


def quantity(value: int | float | str) -> float:
    """Returns a number, or text such as `20M`, `1.5B` or `2e7`, as a float.

    Raises ValueError for other values, and for a number that is not finite and positive.
    """
    number = _parse(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= sys.float_info.max:
        raise ValueError(f"{value!r} must be a positive number such as 20000000, 2e7, 20M or 1.5B")
    return float(number)


def _parse(text: str) -> float:
    match = NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} must be a number such as 20000000, 2e7, 20M or 1.5B")
    return float(match[1].replace("_", "")) * SUFFIXES[match[2]]


class AsNumber:
    """Makes pydantic read a value with `quantity`, so that the ranges declared beside it apply to the number."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Returns the schema of the annotated type, with `quantity` after it."""
        from pydantic_core import core_schema  # here, because a run that is not checked does not import it

        return core_schema.no_info_after_validator_function(quantity, handler(source))


Quantity = Annotated[int | float | str, AsNumber(), Gt(0)]  # a number, or text such as 20M


@dataclass(frozen=True)
class Budget:
    """The training budget of a stage: at most one of the first five fields.

    Without any of them, an objective that fine-tunes takes its `default_epochs`, and every other one 20 tokens per
    active parameter (Hoffmann et al. 2022, arXiv:2203.15556).

    tokens  training tokens, repeats included
    flops   training FLOPs of the model (forward and backward, without recomputation)
    ratio   training tokens per active parameter
    steps   optimizer steps
    epochs  passes over the training samples of the stage's data, where samples of retention=replay count as its own

    stop_at_loss, in nats per token, ends training early: at the first validation (eval.every_steps) where all losses of
    the tasks of the stage have reached it. It goes with any budget, and the schedule still ends at that of the budget.
    """

    tokens: Quantity | None = None
    flops: Quantity | None = None
    ratio: Quantity | None = None
    steps: Quantity | None = None
    epochs: Quantity | None = None
    stop_at_loss: Positive | None = None

    def __post_init__(self) -> None:
        limits = self.limits()
        if len(limits) > 1:
            names = " and ".join(f"budget.{name}={value}" for name, value in limits.items())
            raise ValueError(f"{names} exclude each other: set only one")

    def limits(self) -> dict[str, int | float | str]:
        """Returns the fields that are set, without stop_at_loss."""
        return {name: value for name, value in vars(self).items() if name in LIMITS and value is not None}

    def num_tokens(
        self,
        *,
        batch_tokens: float,
        active_params: float,
        flops_per_token: float,
        epoch_steps: float,
        default_epochs: float | None = None,
    ) -> float:
        """Returns the number of training tokens, before it is rounded to whole optimizer steps.

        batch_tokens     tokens of an optimizer step
        active_params    parameters that a token uses
        flops_per_token  training FLOPs of a token, forward and backward
        epoch_steps      optimizer steps of a pass over the training samples
        default_epochs   that of the objective
        """
        if self.steps is not None:
            return quantity(self.steps) * batch_tokens
        if self.tokens is not None:
            return quantity(self.tokens)
        if self.flops is not None:
            return quantity(self.flops) / flops_per_token
        epochs = default_epochs if not self.limits() else self.epochs
        if epochs is not None:
            return quantity(epochs) * epoch_steps * batch_tokens
        return quantity(DEFAULT_RATIO if self.ratio is None else self.ratio) * active_params

    def num_steps(
        self,
        *,
        batch_tokens: int,
        active_params: int,
        flops_per_token: float,
        epoch_steps: float,
        default_epochs: float | None = None,
    ) -> int:
        """Returns the number of optimizer steps, rounded to the nearest and at least 1; arguments as `num_tokens`."""
        tokens = self.num_tokens(
            batch_tokens=batch_tokens,
            active_params=active_params,
            flops_per_token=flops_per_token,
            epoch_steps=epoch_steps,
            default_epochs=default_epochs,
        )
        return max(1, round(tokens / batch_tokens))
