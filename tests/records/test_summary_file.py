"""A summary.json that no run wrote is named with its fault, set aside by the next start, and counts as missing."""

import copy
import json

import pytest
from fake_run import SUMMARY, fake_run, fake_stage, write_summary

from kleiber.records.folder import status
from kleiber.records.regular_files import DamagedFile
from kleiber.records.summary import Summary
from kleiber.records.summary_file import (
    OtherSchema,
    first_error,
    load_schema,
    read_summary,
    summary_or_warning,
    summary_test,
)
from kleiber.records.terminal import warn_once

FACTS = {
    "run_id": "a" * 12, "name": "runs", "study": None, "config_hash": "0" * 8, "overrides": [], "seed": 3,
    "machine": {"cpu": "none", "threads": 1, "device": "cpu", "world_size": 1},
}  # fmt: skip


def damaged(**changes: object) -> str:
    """A summary.json with other values, or without those that are `...`."""
    values = {**SUMMARY, "run_id": "a" * 8, "name": "runs", "status": "finished", "overrides": [], "seed": 0}
    values |= {"stages": [fake_stage()], **changes}
    return json.dumps({key: value for key, value in values.items() if value is not ...})


def stage_without(key: str, **changes: object) -> dict[str, object]:
    return {name: value for name, value in {**fake_stage(), **changes}.items() if name != key}


DAMAGES = {
    "status alone": ('{"status": "finished"}', "schema is missing"),
    "a list": ("[]", "list"),
    "NULs": ("\0" * 20, "JSON"),
    "not UTF-8": ("\udcff{}", "UTF-8"),
    "too deep": ("[" * 10**5, "nested"),
    "no stages": (damaged(stages=...), "stages is missing"),
    "stages of text": (damaged(stages=["main"]), "stages[0]=main"),
    "a stage without metrics": (damaged(stages=[stage_without("metrics")]), "stages[0].metrics is missing"),
    "metrics of text": (damaged(stages=[stage_without("", metrics={"val/a/loss": "1"})]), "metrics.val/a/loss=1"),
    "a stage outside": (damaged(stages=[stage_without("", name="../../x")]), "stages[0].name=../../x"),
    "another status": (damaged(status="done"), "status=done"),
    "an id of a number": (damaged(run_id=3), "run_id=3"),
    "seed is true": (damaged(seed=True), "seed=True"),
    "R of text": (damaged(R="R"), "R=R"),
    "another file": (damaged(schema="kleiber.eval/1"), "schema=kleiber.eval/1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_summary_is_named_with_its_fault_and_begun_anew(tmp_path, capsys, damage):
    text, fault = DAMAGES[damage]
    (tmp_path / "summary.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedFile) as caught:
        read_summary(tmp_path)
    assert str(tmp_path / "summary.json") in str(caught.value) and fault in str(caught.value)
    Summary(tmp_path).start(**FACTS)
    assert str(tmp_path / "summary.json") in capsys.readouterr().err
    assert read_summary(tmp_path)["status"] == "running"
    assert (tmp_path / "summary.json.damaged").read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_summary_of_another_version_is_refused_and_stays(tmp_path, capsys):
    text = damaged(schema="kleiber.run/9")
    (tmp_path / "summary.json").write_text(text)
    for read in (read_summary, status, lambda folder: Summary(folder).start(**FACTS)):
        with pytest.raises(OtherSchema, match=r"kleiber\.run/9 .* kleiber\.run/1"):
            read(tmp_path)
    assert summary_or_warning(tmp_path) == {} and "kleiber.run/9" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_a_folder_or_a_dangling_link_in_the_place_of_a_summary_is_set_aside(tmp_path, capsys):
    assert read_summary(tmp_path) is None
    for number, make in enumerate((lambda path: path.mkdir(), lambda path: path.symlink_to(tmp_path / "nothing"))):
        make(tmp_path / "summary.json")
        with pytest.raises(DamagedFile):
            read_summary(tmp_path)
        Summary(tmp_path).start(**FACTS)
        assert (tmp_path / f"summary.json.damaged{'.1' * number}").is_dir() == (number == 0)
        (tmp_path / "summary.json").unlink()


def test_a_whole_summary_is_read_as_it_was_written(tmp_path):
    fake_run(tmp_path, [{"metrics": {"val/docs/loss": None}}], R={"tasks": ["docs"]})
    assert read_summary(tmp_path) == json.loads((tmp_path / "summary.json").read_text())
    write_summary(tmp_path, status="preempted")
    assert read_summary(tmp_path)["status"] == "preempted"


def test_a_damaged_summary_is_warned_of_once(tmp_path, capsys):
    warn_once.cache_clear()
    (tmp_path / "summary.json").write_text("[]")
    assert summary_or_warning(tmp_path) == summary_or_warning(tmp_path) == {}
    assert capsys.readouterr().err.count(str(tmp_path / "summary.json")) == 1
    assert summary_or_warning(tmp_path / "nowhere") == {} and capsys.readouterr().err == ""


def changed_at(summary, place, value):
    """A copy of a summary with another value at a place, such as ("stages", 0, "lr"); without it for `...`."""
    changed = copy.deepcopy(summary)
    *way, last = place
    node = changed
    for key in way:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return changed


def test_the_fast_test_agrees_with_the_search_for_the_first_error(tmp_path):
    """At every place of a summary, with values of every type, and without it."""
    folder = fake_run(tmp_path / "run", seed=1, R={"tasks": ["a"]})
    summary, schema = json.loads((folder / "summary.json").read_text()), load_schema("summary.schema.json")
    places = [(key,) for key in summary] + [("stages", 0, key) for key in summary["stages"][0]]
    places += [
        ("stages", 0, "params", "active"),
        ("stages", 0, "metrics", "val/a/loss"),
        ("R", "higher_is_better", "a"),
    ]
    summary["stages"][0]["metrics"]["val/a/loss"] = 1.0
    wrong = 0
    for place in places:
        for value in (None, True, 1, 2.0, 2.5, "text", [], {}, [1], {"a": 1}, ...):
            changed = changed_at(summary, place, value)
            error = first_error(changed, schema)
            assert summary_test()(changed) == (error is None), (place, value, error)
            wrong += error is not None
    assert summary_test()(summary) and not summary_test()([]) and wrong > 200
