"""summary.json keeps what earlier starts wrote; JSON and metrics.jsonl are read as written, without rows cut short."""

from fake_run import fake_stage

from kleiber.config.errors import Status
from kleiber.records.files import read_json, write_json
from kleiber.records.summary import Summary, map_strings, read_rows, rows_with
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
