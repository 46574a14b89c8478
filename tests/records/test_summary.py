"""summary.json keeps what earlier starts wrote."""

from fake_run import fake_stage

from kleiber.config.errors import Status
from kleiber.records.files import read_json, write_json
from kleiber.records.summary import Summary

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
