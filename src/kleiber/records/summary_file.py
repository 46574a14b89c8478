"""Reads summary.json of a run, which may be missing, damaged or not one that a run wrote. Imports no torch.

A value is checked against a JSON schema: types, required keys, choices and patterns. Ranges are not checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kleiber.config.errors import ConfigError
from kleiber.records.files import read_json
from kleiber.records.regular_files import DamagedFile
from kleiber.records.terminal import warn_once
from kleiber.types import Json

SUMMARY, SCHEMA = "summary.json", "kleiber.run/1"
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
Test = Callable[[Any], bool]
LONGEST = 60  # characters of a value in an error


class OtherSchema(ConfigError):
    """Another version of kleiber has written a summary.json, in a form that this one does not read."""


def read_summary(folder: Path) -> Json | None:
    """The content of summary.json in a run's folder; None where there is none.

    Raises DamagedFile, which names the first key that is missing or has a value that no run writes, and OtherSchema.
    """
    path = folder / SUMMARY
    if not os.path.lexists(path):
        return None
    values = read_json(path)
    check_summary(values, path)
    return values


def check_summary(values: object, path: Path, place: str = "") -> None:
    """Raises DamagedFile, which names the first wrong key, unless `values` of the file at `path` are a summary.

    place  where they are in the file, in front of the key

    Raises OtherSchema for a summary of another schema, which must not be renamed and begun anew as a damaged one is.
    """
    if not summary_test()(values):
        schema = values.get("schema") if isinstance(values, dict) else None
        if isinstance(schema, str) and re.fullmatch(r"kleiber\.run/\d+", schema) and schema != SCHEMA:
            raise OtherSchema(
                f"{path} has the schema {schema} of another version of kleiber, and this one reads {SCHEMA}: use that "
                "version, or rename the folder"
            )
        raise DamagedFile(path, f"{place}{first_error(values, load_schema('summary.schema.json'))}")


def set_damaged_aside(path: Path) -> Path:
    """Renames a damaged file to `<name>.damaged`, or the next free number after it, and returns the new path."""
    place, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(place):
        place, number = path.with_name(f"{path.name}.damaged.{number}"), number + 1
    path.rename(place)
    return place


def summary_or_warning(folder: Path) -> Json:
    """The content of summary.json; {} where it is missing or unreadable, which is warned of once in a process."""
    try:
        return read_summary(folder) or {}
    except (DamagedFile, OtherSchema) as error:
        warn_once(f"{error}; it is read as missing, so a run that has begun counts as killed")
        return {}


@cache
def load_schema(name: str) -> Json:
    """Returns the schema in the file `name` beside this module."""
    return read_json(Path(__file__).with_name(name))


@cache
def summary_test() -> Test:
    """The test whether a value has the form of a summary, as `first_error` finds it, in a tenth of its time."""
    schema = load_schema("summary.schema.json")
    return build_test(schema, schema["$defs"], {})


def build_test(schema: Json, definitions: Json, tests: dict[str, Test]) -> Test:
    """Returns a function that tells whether a value that json has read has the form of a schema.

    definitions  schemas to which `schema` and others refer
    tests        functions of these definitions, as far as they have been built
    """
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        if name not in tests:
            tests[name] = lambda value: built(value)  # for a definition that contains itself
            built = build_test(definitions[name], definitions, tests)
            tests[name] = built
        return tests[name]
    kinds = schema.get("type", [])
    types = frozenset(kind for name in ([kinds] if isinstance(kinds, str) else kinds) for kind in TYPES[name])
    whole = int in types and float not in types
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    pattern = re.compile(schema["pattern"]) if "pattern" in schema else None
    required = tuple(schema.get("required", ()))
    nested = {**schema.get("properties", {}), None: schema.get("additionalProperties")}
    forms = {
        name: build_test(form, definitions, tests) if isinstance(form, dict) else None for name, form in nested.items()
    }
    item_test = build_test(schema["items"], definitions, tests) if "items" in schema else None

    def test(value: Any) -> bool:
        """Whether a value has the form of the schema."""
        kind = type(value)
        if types and kind not in types and not (whole and kind is float and value.is_integer()):
            return False
        if choices is not None and value not in choices:
            return False
        if kind is str:
            return pattern is None or pattern.search(value) is not None
        if kind is dict:
            for name in required:
                if name not in value:
                    return False
            for name, item in value.items():
                form = forms[name if name in forms else None]
                if form is not None and not form(item):
                    return False
            return True
        return kind is not list or item_test is None or all(map(item_test, value))

    return test


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
