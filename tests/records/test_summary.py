"""summary.json keeps what earlier starts wrote; JSON and metrics.jsonl are read as written, without rows cut short."""

import json

import pytest
from fake_run import SUMMARY, fake_run, fake_stage, write_summary

from kleiber.config.errors import Status
from kleiber.records.files import DamagedFile, read_json, write_json
from kleiber.records.summary import Summary, map_strings, read_rows, read_summary, rows_with
from kleiber.training.loggers import Rows


def test_rows_come_back_as_they_were_logged_without_a_line_that_was_cut_short(tmp_path):
    assert read_rows(tmp_path) == []
    log = Rows(tmp_path)
    log.log_metrics({"moe/load/0/1": 0.5}, 1)
    log.log_metrics({"train/loss": 3.0}, 2)
    with open(log.path, "a") as file:
        file.write('{"step": 3, "train/loss": 2')
    rows = read_rows(tmp_path)
    assert rows == [{"step": 1, "moe/load/0/1": 0.5}, {"step": 2, "train/loss": 3.0}]
    assert rows_with(rows, "moe/load/") == rows[:1]


def test_every_string_of_a_config_is_mapped_and_keys_and_numbers_are_kept():
    config = {"a": "x", "b": {"c": ["x", 1, {"d": "x"}]}, "e": None}
    assert map_strings(config, str.upper) == {"a": "X", "b": {"c": ["X", 1, {"d": "X"}]}, "e": None}


FACTS = {
    "run_id": "a" * 12, "name": "runs", "study": None, "config_hash": "0" * 8, "overrides": [], "seed": 3,
    "machine": {"cpu": "none", "threads": 1, "device": "cpu", "world_size": 1},
}  # fmt: skip


def test_a_second_start_keeps_stages_and_seconds_and_begins_anew_what_describes_the_process(tmp_path):
    first = Summary(tmp_path)
    first.start(**FACTS)
    first.put_stage(fake_stage())
    first.update(status=Status.FAILED, error="disk full")
    write_json(first.path, {**first.values, "started": "2026-01-01", "seconds": 100.0})
    second = Summary(tmp_path)
    second.start(**{**FACTS, "run_id": "b" * 12})
    written = read_json(second.path)
    assert written == second.values and written["started"] == "2026-01-01" and written["seconds"] >= 100
    assert (written["status"], written["error"], written["run_id"]) == ("running", None, "b" * 12)
    assert list(second.finished_stages()) == ["main"] and written["versions"]["python"]


def test_a_stage_replaces_the_one_of_its_name(tmp_path):
    summary = Summary(tmp_path)
    summary.start(**FACTS)
    for name, status in (("trunk", "running"), ("trunk", "finished"), ("branch", "running")):
        summary.put_stage({"name": name, "status": status})
    assert [(stage["name"], stage["status"]) for stage in read_json(summary.path)["stages"]] == [
        ("trunk", "finished"), ("branch", "running"),
    ]  # fmt: skip
    assert list(summary.finished_stages()) == ["trunk"]


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
    "another version": (damaged(schema="kleiber.run/9"), "schema=kleiber.run/9"),
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
