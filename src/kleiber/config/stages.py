"""The configs of a run's stages, as plain data. Imports no torch.

A stage of a chain is written as what differs from the run (its data, objective, budget, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from kleiber.config.budget import quantity
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.types import Config, Json

ONLY = "main"  # the name of the one stage of an ordinary run
OWN = ("data", "objective", "budget", "schedule", "optimizer", "retention", "adapter", "batch")
RETAINING = ("retention", "adapter")  # the run's choice applies to every stage but the first
WHOLE = ("budget", *RETAINING)  # replaced and never merged: their keys exclude one another, or are named nodes


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
