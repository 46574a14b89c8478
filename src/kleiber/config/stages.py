"""The stages of a run as plain data: their configs and names, and the training budget of each. Imports no torch.

A stage of a chain is written as what differs from the run (its data, objective, budget, ...).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.types import Config, Json

ONLY = "main"  # the name of the one stage of an ordinary run
OWN = ("data", "objective", "budget", "schedule", "optimizer", "retention", "adapter", "batch")
RETAINING = ("retention", "adapter")  # the run's choice applies to every stage but the first
WHOLE = ("budget", *RETAINING)  # replaced and never merged: their keys exclude one another, or are named nodes
SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
NUMBER = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)([kKMBGT]?)")
DEFAULT_RATIO = 20.0


def is_chain(config: Config) -> bool:
    return bool((config.get("stages") or {}).get("chain"))


def from_weights(config: Config) -> bool:
    """Whether the run's first stage starts from trained weights."""
    target = str((config.get("init") or {}).get("_target_", "Scratch"))
    return not target.endswith("Scratch")


def stage_configs(config: Config) -> dict[str, Json]:
    """The complete config of every stage by name, in order; a run without a chain has the single stage `main`.

    A node with a `_target_` replaces that of the run, one without is merged into it; a budget is replaced as a whole.
    Raises ConfigError for a key that a stage cannot set.
    """
    if not is_chain(config):
        return {ONLY: dict(config)}
    stages: dict[str, Json] = {}
    for name, changes in config["stages"]["chain"].items():
        stage = copy.deepcopy({key: value for key, value in config.items() if key != "stages"}) | {"stages": None}
        if not stages:
            stage |= dict.fromkeys(RETAINING)
        for key, value in (changes or {}).items():
            if key not in OWN:
                near = did_you_mean(str(key), OWN)
                raise ConfigError(f"stages.chain.{name}.{key}: a stage can set {', '.join(OWN)} only.{near}")
            stage[key] = value if key in WHOLE else merged(stage.get(key), value)
        if changes and "budget" in changes:
            stage["budget"] = dict.fromkeys(config["budget"]) | dict(changes["budget"])
        stages[name] = stage
    return stages


def stage_config(config: Config, stage: str) -> Json:
    """The config of one stage; a branch of a tree has that of the run."""
    return stage_configs(config).get(stage) or dict(config)


def merged(old: Any, new: Any) -> Any:
    """`new`, merged into `old` where both are mappings and `new` has no `_target_`."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)) or "_target_" in new:
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def stage_names(config: Config) -> list[str]:
    """The names of the stages that a run with this config will have, in order."""
    if not (config.get("stages") or {}).get("branches"):
        return list(stage_configs(config))
    return ["trunk", *(name for name, _ in branches_of(config["stages"]["branches"]))]


def branches_of(branches: Sequence[int | float | str]) -> list[tuple[str, float]]:
    """Name and training tokens of the branches of a tree, short ones first."""
    return sorted({label(tokens): quantity(tokens) for tokens in branches}.items(), key=lambda branch: branch[1])


def label(tokens: int | float | str) -> str:
    """The name of a branch: its tokens as they were written, or a number of millions as `4M`."""
    if isinstance(tokens, str):
        return tokens
    return f"{tokens / 1e6:g}M" if tokens >= 1e6 else f"{tokens:g}"


def trains_tokenizer(config: Config) -> bool:
    """Whether a run with this config trains a tokenizer, which it then keeps in its folder."""
    data = config["data"]
    while isinstance(data.get("data"), Mapping):  # a data set around another one
        data = data["data"]
    return data.get("tokenizer") == "bpe"


def built_trained(model: Config) -> bool:
    """Whether the node of a model builds it with trained weights."""
    return model["_target_"].endswith(".HFModel") and model.get("weights", "pretrained") == "pretrained"


def quantity(value: int | float | str) -> float:
    """Converts a number, or text such as `20M`, `1.5B`, `2e7`, to a float.

    Raises ValueError for other text, and for a number that is not finite and positive.
    """
    number = float(value) if isinstance(value, int | float) else _parse(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} must be a positive number such as 20000000, 2e7, 20M or 1.5B")
    return number


def _parse(text: str) -> float:
    match = NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} must be a number such as 20000000, 2e7, 20M or 1.5B")
    return float(match[1].replace("_", "")) * SUFFIXES[match[2]]


@dataclass(frozen=True)
class Budget:
    """A training budget; at most one field is set.

    tokens  training tokens, repeats included
    flops   training FLOPs of the model (forward and backward, without recomputation)
    ratio   training tokens per active parameter
    steps   optimizer steps

    stop_at_loss (nats per token) may be combined with any of them: training ends early when every validation loss of
    the stage's own tasks has reached it. The schedule keeps the budget's horizon.
    """

    tokens: int | float | str | None = None
    flops: int | float | str | None = None
    ratio: int | float | str | None = None
    steps: int | float | str | None = None
    stop_at_loss: int | float | None = None

    def __post_init__(self) -> None:
        limits = self.limits()
        if len(limits) > 1:
            names = " and ".join(f"budget.{name}={value}" for name, value in limits.items())
            raise ValueError(f"{names} exclude each other: set only one")
        for name, value in limits.items():
            try:
                quantity(value)
            except ValueError as error:
                raise ValueError(f"budget.{name}: {error}") from None
        if self.stop_at_loss is not None and self.stop_at_loss <= 0:
            raise ValueError(f"budget.stop_at_loss={self.stop_at_loss} must be > 0 nats per token")

    def limits(self) -> dict[str, int | float | str]:
        """The fields that are set, without stop_at_loss."""
        values = {"tokens": self.tokens, "flops": self.flops, "ratio": self.ratio, "steps": self.steps}
        return {name: value for name, value in values.items() if value is not None}

    def num_steps(self, *, batch_tokens: int, active_params: int, flops_per_token: float) -> int:
        """Returns the number of optimizer steps, rounded to the nearest and at least 1.

        batch_tokens     tokens of an optimizer step
        active_params    parameters that a token uses
        flops_per_token  training FLOPs of a token, forward and backward
        """
        if self.steps is not None:
            return max(1, round(quantity(self.steps)))
        if self.tokens is not None:
            tokens = quantity(self.tokens)
        elif self.flops is not None:
            tokens = quantity(self.flops) / flops_per_token
        else:
            tokens = quantity(DEFAULT_RATIO if self.ratio is None else self.ratio) * active_params
        return max(1, round(tokens / batch_tokens))
