"""Overrides of one command line that replace each other: budgets, nulls before a value, and keys without effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Override

from kleiber.config.errors import ConfigError
from kleiber.config.stages import LIMITS


def budget_nulls(overrides: list[Override]) -> list[str]:
    """Returns overrides that clear the other budget keys, if the command line sets one. Raises ConfigError for two."""
    names = {f"budget.{name}" for name in LIMITS}
    lines = {o.key_or_group: str(o.input_line) for o in overrides if o.key_or_group in names}
    limits = {key: line for key, line in lines.items() if line.split("=", 1)[1] not in ("null", "~")}
    if len(limits) > 1:
        raise ConfigError(f"{' and '.join(limits.values())} exclude each other: set only one")
    if not limits:
        return []
    return [f"++budget.{name}=null" for name in LIMITS if f"budget.{name}" not in lines]


def null_first(prepared: list[str], message: str) -> list[str] | None:
    """Returns the overrides with a null before the one that Hydra could not merge; None where that does not help.

    Hydra merges a value into that of the files, and so refuses a dictionary for a list, or a list for a dictionary.
    The null has no `++`, because a sweep keeps one override of each spelling of a key.
    """
    line = message.partition("Error merging override ")[2].partition("\n")[0].strip()
    clear = f"{line.partition('=')[0].lstrip('+')}=null"
    if line not in prepared or clear in prepared:
        return None
    at = prepared.index(line)
    return [*prepared[:at], clear, *prepared[at:]]


def refuse_without_effect(overrides: Sequence[str], config: Mapping[str, object]) -> None:
    """Raises ConfigError for a prepared override of a key that the composed config does not have.

    Another override has replaced the node that the key is in, such as `budget.ratio=null` after `budget.ratio.x=1`.
    """
    lines = [line.removeprefix("++") for line in overrides if line.startswith("++")]
    keys = {line.partition("=")[0]: line for line in lines}
    for key, line in keys.items():
        node: object = config
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                above = [other for other in keys if key.startswith(f"{other}.")]
                reason = f"{keys[above[-1]]} replaces what it is in" if above else "what it is in has no keys"
                raise ConfigError(f"{line} has no effect, since {reason}: remove it")
            node = node[name]
