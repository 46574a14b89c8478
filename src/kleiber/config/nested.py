"""The values of nested configs: by dotted key, and with all strings replaced."""

from __future__ import annotations

from collections.abc import Callable

from kleiber.types import Config, Json


def flatten(node: object, prefix: str = "") -> Json:
    """Returns the values of a nested config by dotted key, such as `model.depth`."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        key: value
        for name, sub in node.items()
        for key, value in flatten(sub, f"{prefix}{'.' * bool(prefix)}{name}").items()
    }


def map_strings(config: Config, fn: Callable[[str], str]) -> Json:
    """The config with `fn` applied to every string value in it."""
    return {key: _map_strings(value, fn) for key, value in config.items()}


def _map_strings(value: object, fn: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return fn(value)
    if isinstance(value, dict):
        return map_strings(value, fn)
    return [_map_strings(entry, fn) for entry in value] if isinstance(value, list) else value
