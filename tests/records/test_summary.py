"""summary.json keeps what earlier starts wrote; JSON and metrics.jsonl are read as written, without rows cut short."""

from kleiber.config.errors import Status
from kleiber.records.files import write_json
from kleiber.records.summary import Summary, map_strings, read, read_rows, rows_with
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


def test_numbers_that_json_cannot_represent_become_null(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"loss": float("nan"), "list": [1.0, float("inf")], "text": "a"})
    assert read(path) == {"loss": None, "list": [1.0, None], "text": "a"}
    assert read(tmp_path / "missing.json") is None
    path.write_text('{"cut')
    assert read(path) is None


def test_every_string_of_a_config_is_mapped_and_keys_and_numbers_are_kept():
    config = {"a": "x", "b": {"c": ["x", 1, {"d": "x"}]}, "e": None}
    assert map_strings(config, str.upper) == {"a": "X", "b": {"c": ["X", 1, {"d": "X"}]}, "e": None}


def test_a_second_start_keeps_stages_and_seconds_and_begins_anew_what_describes_the_process(tmp_path):
    first = Summary(tmp_path)
    first.start(run_id="a", seed=3)
    first.put_stage({"name": "main", "status": "finished"})
    first.update(status=Status.FAILED, error="disk full")
    write_json(first.path, {**first.values, "started": "2026-01-01", "seconds": 100.0})
    second = Summary(tmp_path)
    second.start(run_id="b", seed=3)
    written = read(second.path)
    assert written == second.values and written["started"] == "2026-01-01" and written["seconds"] >= 100
    assert (written["status"], written["error"], written["run_id"]) == ("running", None, "b")
    assert list(second.finished_stages()) == ["main"] and written["versions"]["python"]


def test_a_stage_replaces_the_one_of_its_name(tmp_path):
    summary = Summary(tmp_path)
    summary.start()
    for name, status in (("trunk", "running"), ("trunk", "finished"), ("branch", "running")):
        summary.put_stage({"name": name, "status": status})
    assert [(stage["name"], stage["status"]) for stage in read(summary.path)["stages"]] == [
        ("trunk", "finished"), ("branch", "running"),
    ]  # fmt: skip
    assert list(summary.finished_stages()) == ["trunk"]
