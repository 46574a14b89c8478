"""The checks agree with jsonschema, except for ranges, and name the key of the first error."""

import jsonschema
import pytest

from kleiber.records.summary_file import first_error, load_schema

SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {
        "a": {"type": ["integer", "null"]},
        "b": {"type": "array", "items": {"$ref": "#/$defs/part"}},
        "c": {"enum": ["x", "y"]},
        "d": {"type": "object", "additionalProperties": {"type": "number"}},
        "e": {"const": "v1"},
        "f": {"type": "boolean"},
    },
    "$defs": {"part": {"type": "object", "required": ["name"], "properties": {"name": {"pattern": "^[a-z]+$"}}}},
}
GOOD = [{"a": 1}, {"a": None, "b": [], "z": 3}, {"a": 1.0, "b": [{"name": "x"}]}, {"a": 2, "d": {"p": 1, "q": 0.5}},
        {"a": 0, "c": "x", "e": "v1", "f": True}]  # fmt: skip
BAD = [
    ([], "object"), ({}, "a is missing"), ({"a": True}, "a=True"), ({"a": 1.5}, "a=1.5"), ({"a": "1"}, "a=1"),
    ({"a": 1, "b": {}}, "b must"), ({"a": 1, "b": [{"name": "x"}, {}]}, "b[1].name is missing"),
    ({"a": 1, "b": [{"name": "../x"}]}, "b[0].name=../x"), ({"a": 1, "c": "z"}, "c=z"), ({"a": 1, "e": "v2"}, "e=v2"),
    ({"a": 1, "d": {"p": None}}, "d.p=None"), ({"a": 1, "d": {"p": False}}, "d.p=False"), ({"a": 1, "f": 0}, "f=0"),
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD)
def test_a_value_of_the_form_has_no_error(value):
    jsonschema.validate(value, SCHEMA)
    assert first_error(value, SCHEMA) is None


@pytest.mark.parametrize(("value", "error"), BAD)
def test_the_first_error_names_the_key_and_the_value(value, error):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, SCHEMA)
    assert error in str(first_error(value, SCHEMA))


def test_the_schema_of_a_run_is_one():
    jsonschema.Draft202012Validator.check_schema(load_schema("summary.schema.json"))
    assert load_schema("summary.schema.json") is load_schema("summary.schema.json")
