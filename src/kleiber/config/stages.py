"""The configs of a run's stages, and what a run that starts from another takes over from it: data in, data out.

A stage of a chain is written as what differs from the run (its data, objective, budget, ...). Nothing here imports
torch, so a config is complete, and can be checked and hashed, before anything is built.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from kleiber.config.budget import quantity
from kleiber.config.errors import ConfigError, did_you_mean

ONLY = "main"  # the name of the one stage of an ordinary run
OWN = ("data", "objective", "budget", "schedule", "optimizer", "retention", "adapter", "batch")
RETAINING = ("retention", "adapter")  # of the run: for every stage that comes after another
WHOLE = ("budget", *RETAINING)  # replaced and never merged: their keys exclude one another, or are nodes of their own


def is_chain(config: Mapping[str, Any]) -> bool:
    return bool((config.get("stages") or {}).get("chain"))


def from_weights(config: Mapping[str, Any]) -> bool:
    """Whether the run's first stage begins with weights that have been trained."""
    target = str((config.get("init") or {}).get("_target_", "Scratch"))
    return not target.endswith("Scratch")


def stage_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The whole config of every stage by name, in order; of a run without a chain, its own as `main`.

    A node with a `_target_` replaces that of the run, one without is merged into it; budgets replace each other whole.
    """
    if not is_chain(config):
        return {ONLY: dict(config)}
    found: dict[str, dict[str, Any]] = {}
    for name, own in config["stages"]["chain"].items():
        one = copy.deepcopy({key: value for key, value in config.items() if key != "stages"}) | {"stages": None}
        if not found:
            one |= dict.fromkeys(RETAINING)
        for key, value in (own or {}).items():
            if key not in OWN:
                near = did_you_mean(str(key), OWN)
                raise ConfigError(f"stages.chain.{name}.{key}: a stage has no {key} of its own.{near} {', '.join(OWN)}")
            one[key] = value if key in WHOLE else merged(one.get(key), value)
        if own and "budget" in own:
            one["budget"] = dict.fromkeys(config["budget"]) | dict(own["budget"])
        found[name] = one
    return found


def stage_config(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The config of one stage; a branch of a tree has that of the run."""
    return stage_configs(config).get(stage) or dict(config)


def merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)) or "_target_" in new:
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def stage_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the stages that a run with this config will have, in order."""
    if not (config.get("stages") or {}).get("branches"):
        return list(stage_configs(config))
    return ["trunk", *(name for name, _ in branches_of(config["stages"]["branches"]))]


def branches_of(branches: Sequence[int | float | str]) -> list[tuple[str, float]]:
    """Name and training tokens of the branches of a tree, short ones first."""
    return sorted({label(tokens): quantity(tokens) for tokens in branches}.items(), key=lambda branch: branch[1])


def label(tokens: int | float | str) -> str:
    """The name of a branch: its tokens as they were written, a round number of millions as `4M`."""
    if isinstance(tokens, str):
        return tokens
    return f"{tokens / 1e6:g}M" if tokens >= 1e6 else f"{tokens:g}"


def trains_tokenizer(config: Mapping[str, Any]) -> bool:
    """Whether a run with this config trains a tokenizer of its own, which it keeps in its folder."""
    data = config["data"]
    while isinstance(data.get("data"), Mapping):  # a data set around another one
        data = data["data"]
    return data.get("tokenizer") == "bpe"


def built_trained(model: Mapping[str, Any]) -> bool:
    """Whether the node of a model builds one with trained weights, which a start point would only replace."""
    return model["_target_"].endswith(".HFModel") and model.get("weights", "pretrained") == "pretrained"
