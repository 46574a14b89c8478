"""Files of a stranger or a damaged disk: each reader raises `DamagedFile` with the path, and writes are whole."""

import json
import os
import time

import pytest
import yaml

from kleiber.records.files import (
    MAX_VALUES,
    MAX_YAML_BYTES,
    copy_file,
    read_config_node,
    read_json,
    read_yaml,
    replaced,
    write_json,
    write_text,
    write_yaml,
)
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
    "huge": b"a: " + b"x" * MAX_YAML_BYTES, "tag": b"a: !!binary eA==", "documents": b"a: 1\n---\na: 2\n",
    "list as a key": b"? [1]\n: 2\n", "merge": b"<<: {a: 1}",
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


PLAIN = [
    "1", "-0x1f", "1_000", "0o7", "017", "1.5", "1e3", "1.0e+3", ".inf", ".nan", "yes", "Off", "~", "null", "",
    "2026-11-30", "=", "[]",
]  # fmt: skip
TEXTS = [
    *(f"a: {value}" for value in PLAIN), *(f"a: '{value}'" for value in PLAIN), "", "# nothing", "5", "a: b: c",
    "- 1\n- a: [x, 'y']\n  b: |\n    two\n    lines\n", "a: 1\nb:\n- c:\n  - d\n  e: {}\na: 2",
    "1: x\n2.5: y\ntrue: z\n~: w",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_of_the_reference_loader(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        with pytest.raises(DamagedFile, match=r"a\.yaml"):
            read_yaml(tmp_path / "a.yaml")
    else:
        assert repr(read_yaml(tmp_path / "a.yaml")) == repr(expected)  # types too, and nan


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "text",
    ['{"a": ' + "9" * 41 + "}", '{"a": -' + "9" * 4000 + "}", '{"a": [' + "[]," * MAX_VALUES + "[]]}"],
    ids=["digits", "negative", "values"],
)
def test_a_json_text_of_bounded_size_takes_bounded_memory(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"a\.json.*(digits|values)"):
        read_json(tmp_path / "a.json")


def test_numbers_of_64_bits_and_any_text_are_read(tmp_path):
    content = {"a": [2**63 - 1, -(2**63), 0.00012345678901234567, 1e300], "text": "9" * 5000 + ",[{" * 1000}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


def test_half_of_a_character_is_replaced_and_whole_ones_stay(tmp_path):
    (tmp_path / "a.json").write_text('{"\\udcff a": ["\\ud83d\\ude42 \\ud83d!", "\\\\ud83d"], "b": {"c": "é\\uDE42"}}')
    content = read_json(tmp_path / "a.json")
    assert content == {"\ufffd a": ["🙂 \ufffd!", "\\ud83d"], "b": {"c": "é\ufffd"}}
    write_yaml(tmp_path / "a.yaml", content)


@pytest.mark.parametrize("text", ["a: 2001-13-45", "a: " + "9" * 5000, "a: 1e", "a: {b: " + "9" * 40 + "}"])
def test_an_impossible_number_or_date_in_a_config_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    if text == "a: 1e":
        assert read_config_node(tmp_path / "config.yaml") == {"a": "1e"}
        return
    with pytest.raises(DamagedFile, match=r"config\.yaml"):
        read_config_node(tmp_path / "config.yaml")


def test_a_link_is_replaced_by_a_file_and_named_and_its_target_stays(tmp_path, capsys):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("my thesis")
    for name, target in (("report.html", thesis), ("a.json", tmp_path / "nothing")):
        (tmp_path / name).symlink_to(target)
        write_text(tmp_path / name, "<html>")
        assert f"{name}.1" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "<html>" and not (tmp_path / name).is_symlink()
        assert (tmp_path / f"{name}.1").is_symlink()
    assert thesis.read_text() == "my thesis" and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_nothing_else_is_replaced_by_a_file(tmp_path, kind):
    path = tmp_path / "report.html"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DamagedFile, match=f"report.html is damaged: it is a {kind}"):
        write_text(path, "<html>")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"] and not path.is_file()


def test_a_link_in_the_place_of_a_file_that_is_being_written_is_not_followed(tmp_path):
    (tmp_path / "thesis.txt").write_text("my thesis")
    (tmp_path / f".a.json.part-{os.getpid()}").symlink_to("thesis.txt")
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "thesis.txt").read_text() == "my thesis" and read_json(tmp_path / "a.json") == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "thesis.txt"]


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, shared):
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), replaced(tmp_path / "a", shared=shared) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    with replaced(tmp_path / "a", shared=shared) as part:
        part.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "new"


def test_a_copy_has_the_content_and_is_no_link(tmp_path):
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "tokenizer.json").symlink_to("blob")
    copy_file(tmp_path / "tokenizer.json", tmp_path / "copy")
    copy_file(tmp_path / "blob", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content" and not (tmp_path / "copy").is_symlink()
