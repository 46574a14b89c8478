"""Checks the form of the nodes of a config on which completing it relies, before their values are checked.

A config is completed with what the run inherits from its start point, and with default learning rates, before
`kleiber.config.check` sees it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kleiber.config.check import NODES, OPTIONAL, check_plain, require_mapping, require_node
from kleiber.config.compose import find_choice, read_choice
from kleiber.config.errors import ConfigError
from kleiber.config.stages import LATER_STAGE_KEYS, STAGE_KEYS, Budget
from kleiber.types import Config

CHOSEN = tuple(key for key in NODES if key not in ("callbacks", "logger"))


def check_structure(config: Config, chosen: Sequence[str] = CHOSEN) -> None:
    """Raises ConfigError for a node without a `_target_`, for another value in the place of a mapping, and for a budget
    or a chain of stages of another form.

    chosen  keys of the nodes that must have a `_target_`
    """
    for key in chosen:
        require_node(key, config.get(key))
    for key in OPTIONAL:
        require_mapping(key, config.get(key))
    if "budget" in config:
        check_plain("budget", Budget, config["budget"])
    chain = (config.get("stages") or {}).get("chain")
    if chain is None:
        return
    if not isinstance(chain, Mapping):
        raise ConfigError(
            f"stages.chain={chain} must be a mapping of the names of stages to the keys in which they differ from the "
            "run, such as {docs: {data: {domain: docs}}, code: {data: {domain: code}}}"
        )
    for name, changes in chain.items():
        _check_stage(f"stages.chain.{name}", changes)


def _check_stage(path: str, changes: object) -> None:
    """Checks the form of what a stage changes; the check of its config tells which keys are allowed."""
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{path}={changes} must be a mapping of keys to their values in this stage, or {{}}")
    for key, value in changes.items():
        is_null = value is None and key in (*LATER_STAGE_KEYS, "budget")
        if is_null or key not in STAGE_KEYS:
            continue
        if key == "budget":
            check_plain(f"{path}.budget", Budget, value)
        elif not isinstance(value, Mapping):
            is_choice = isinstance(value, str) and find_choice(key, value) is not None
            target = read_choice(key, str(value)).get("_target_") if is_choice else None
            fix = f", not the name of a choice: write its node, {{_target_: {target}, ...}}" if target else ""
            raise ConfigError(f"{path}.{key}={value} must be a mapping{fix}")
