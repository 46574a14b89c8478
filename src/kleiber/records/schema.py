"""Checks a JSON value against a JSON schema: types, required keys, choices and patterns. Ranges are not checked."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from kleiber.types import Json

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
LONGEST = 60  # characters of a value in an error


@cache
def load_schema(name: str) -> Json:
    """Returns the schema in the file `name` beside this module."""
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def first_error(value: object, schema: Json, root: Json | None = None, key: str = "") -> str | None:
    """Returns what is wrong with a value, with the key and the value; None where it has the form of the schema.

    root  the schema that holds the definitions to which `schema` refers; None for `schema` itself
    key   where the value stands in the file, such as `stages[0].params`
    """
    root = schema if root is None else root
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    error = _error_of_value(value, schema)
    if error is not None:
        return f"{key or 'its content'}{_shown(value)} {error}"
    if isinstance(value, dict):
        return _error_of_object(value, schema, root, key)
    if isinstance(value, list) and "items" in schema:
        errors = (first_error(item, schema["items"], root, f"{key}[{i}]") for i, item in enumerate(value))
        return next((error for error in errors if error is not None), None)
    return None


def _error_of_object(value: Json, schema: Json, root: Json, key: str) -> str | None:
    """Returns the first missing key of an object, or what is wrong with one of its values."""
    prefix = f"{key}." if key else ""
    for name in schema.get("required", ()):
        if name not in value:
            return f"{prefix}{name} is missing"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, item in value.items():
        form = properties.get(name, others)
        error = first_error(item, form, root, f"{prefix}{name}") if isinstance(form, dict) else None
        if error is not None:
            return error
    return None


def _error_of_value(value: object, schema: Json) -> str | None:
    """Returns what a value must be, other than what stands in it; None where it is."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is_of_type(value, kind) for kind in kinds):
        return f"must be {' or '.join(kinds)}"
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices is not None and value not in choices:
        return f"must be {' or '.join(map(str, choices))}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return f"must match {schema['pattern']}"
    return None


def _is_of_type(value: object, kind: str) -> bool:
    if isinstance(value, bool):  # a bool is an int for Python
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _shown(value: object) -> str:
    return f"={str(value)[:LONGEST]}" if value is None or isinstance(value, str | int | float) else ""
