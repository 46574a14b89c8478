"""Files of a stranger or a damaged disk: each reader raises `DamagedFile` with the path, and writes are whole."""

import json
import os
import time

import pytest
import yaml

from kleiber.records.files import MAX_YAML_BYTES, read_config_node, read_json, read_yaml, write_json, write_yaml
from kleiber.records.regular_files import DamagedFile, file_sha256

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
DAMAGED_JSON = {
    "empty": b"", "cut": b'{"a": [1, 2', "list": b"[]", "nul": b'{"a": 1}' + b"\0" * 100, "utf8": b'{"a": "\xff"}',
    "deep": b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "digits": b'{"a": ' + b"9" * 10_000 + b"}",
}  # fmt: skip
DAMAGED_YAML = {
    "aliases": ALIASES.encode(), "deep": b"[" * 10_000 + b"]" * 10_000, "nul": b"a: 1\n" + b"\0" * 100,
    "utf8": b"a: \xff", "code": b"a: !!python/object/apply:os.system ['true']", "cut": b"a: [1, 2",
    "huge": b"a: " + b"x" * MAX_YAML_BYTES,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED_JSON)
def test_damaged_json_is_refused_and_named(tmp_path, name):
    path = tmp_path / "summary.json"
    path.write_bytes(DAMAGED_JSON[name])
    with pytest.raises(DamagedFile, match=r"summary\.json"):
        read_json(path)


@pytest.mark.parametrize("name", DAMAGED_YAML)
def test_damaged_yaml_is_refused_and_named_within_a_second(tmp_path, name):
    path, start = tmp_path / "config.yaml", time.process_time()
    path.write_bytes(DAMAGED_YAML[name])
    with pytest.raises(DamagedFile, match=r"config\.yaml"):
        read_yaml(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("place", ["missing", "folder", "loop", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, place):
    path = tmp_path / place
    if place == "folder":
        path.mkdir()
    elif place == "loop":
        path.symlink_to(path)
    elif place == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(DamagedFile, match=place):
        read_json(path)


def test_a_longer_file_than_allowed_is_not_read(tmp_path):
    write_json(tmp_path / "a.json", {"a": "x" * 1000})
    assert len(read_json(tmp_path / "a.json", 2000)["a"]) == 1000
    with pytest.raises(DamagedFile, match="500"):
        read_json(tmp_path / "a.json", 500)


@pytest.mark.parametrize("text", ["a: {b: '${oc.env:HOME}'}", "a: {b: ['x${a}']}", "[]", "text"])
def test_a_recorded_config_has_keys_and_no_interpolation(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DamagedFile) as error:
        read_config_node(tmp_path / "config.yaml")
    assert ("a.b" in str(error.value)) == ("${" in text) and os.environ["HOME"] not in str(error.value)


def test_a_value_that_occurs_twice_is_written_twice(tmp_path):
    shared = [1, {"b": None}]
    write_yaml(tmp_path / "a.yaml", {"first": shared, "second": shared})
    assert read_yaml(tmp_path / "a.yaml") == {"first": shared, "second": shared}
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == {"first": shared, "second": shared}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
