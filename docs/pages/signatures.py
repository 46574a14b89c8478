"""The arguments of the classes and functions that a config names: type, range, default and description of each."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from kleiber.config.check import SYMBOLS
from kleiber.config.targets import SUPPLIED, signature

# `name   description` in a docstring, where a longer description goes on in indented lines.
ENTRY = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*)$")
NAMES: dict[object, str] = {bool: "true or false", int: "int", float: "float", str: "text", type(None): "null"}


def arguments(target: str) -> dict[str, tuple[str, str, str]]:
    """Returns type, range and default of each argument of a target that a config may set; "required" without a default.

    The default is "" where the source has no literal, which is so for objects that are built.
    """
    rows = {}
    for name, parameter in signature(target).parameters.items():
        if name not in SUPPLIED and not is_object(parameter.annotation):
            default = "required" if parameter.required else literal(parameter.default)
            rows[name] = (type_name(parameter.annotation), range_of(parameter.annotation), default)
    return rows


def literal(value: object) -> str:
    """Returns a value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {literal(item)}" for key, item in value.items()) + "}"
    return str(value)


def is_object(annotation: object) -> bool:
    """Whether only an object can be the value, which a config builds with a node of its own."""
    if get_origin(annotation) in (Union, types.UnionType):
        return all(is_object(arg) for arg in get_args(annotation) if arg is not type(None))
    origin = get_origin(annotation) or annotation
    return inspect.isclass(origin) and origin.__name__ in ("Object", "Callable", "Path")


def type_name(annotation: object) -> str:
    """Returns a type in words: int, float, text, one of some values, or a list of these."""
    if get_origin(annotation) is Annotated:
        inner = get_args(annotation)[0]
        return "quantity" if inner == (int | float | str) else type_name(inner)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{literal(arg)}`" for arg in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        names = [type_name(arg) for arg in get_args(annotation)]
        return " or ".join(dict.fromkeys(names))
    origin = get_origin(annotation)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "mapping"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        inside = [arg for arg in get_args(annotation) if arg is not ...]
        return f"list of {type_name(inside[0])}" if inside else "list"
    return NAMES.get(annotation, "any" if annotation is Any else "node")


def range_of(annotation: object) -> str:
    """Returns the constraints of a type, such as `> 0, <= 1`; bounds that only catch typing errors are left out."""
    parts = []
    for part in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, Annotated) else ():
        parts += [text for text in [range_of(part)] if text]
        if isinstance(part, Gt | Ge | Lt | Le):
            ((name, bound),) = asdict(part).items()
            if isinstance(bound, int | float) and abs(bound) < 1e4:
                parts.append(f"{SYMBOLS[name]} {bound:g}")
    return ", ".join(parts)


@cache
def descriptions(target: str) -> dict[str, str]:
    """Returns what the docstring of a target, and those of the classes it derives from, say about its arguments."""
    package, _, name = target.rpartition(".")
    function: Callable[..., object] = getattr(importlib.import_module(package), name)
    entries: dict[str, str] = {}
    for owner in reversed(inspect.getmro(function) if inspect.isclass(function) else [function]):
        entries |= entries_of(owner.__doc__ or "")
        if inspect.isclass(owner) and "__init__" in vars(owner):
            entries |= entries_of(owner.__init__.__doc__ or "")
    return entries


def entries_of(docstring: str) -> dict[str, str]:
    """Returns the descriptions of a docstring by name."""
    entries, current = dict[str, str](), tuple[str, ...]()
    for line in inspect.cleandoc(docstring).splitlines():
        if match := ENTRY.match(line):
            current = tuple(match.group(1).split(", "))
            entries |= dict.fromkeys(current, match.group(2))
        elif line.startswith("    ") and current:
            entries |= {name: f"{entries[name]} {line.strip()}" for name in current}
        elif line.strip():
            current = ()
    return entries
