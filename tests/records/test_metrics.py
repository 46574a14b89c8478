"""metrics.jsonl is read as it was written, without rows cut short."""

from kleiber.records.metrics import read_rows, rows_with
from kleiber.training.loggers import JsonlLogger


def test_rows_come_back_as_they_were_logged_without_a_line_that_was_cut_short(tmp_path):
    assert read_rows(tmp_path) == []
    log = JsonlLogger(tmp_path)
    log.log_metrics({"moe/load/0/1": 0.5}, 1)
    log.log_metrics({"train/loss": 3.0}, 2)
    with open(log.path, "a") as file:
        file.write('{"step": 3, "train/loss": 2')
    rows = read_rows(tmp_path)
    assert rows == [{"step": 1, "moe/load/0/1": 0.5}, {"step": 2, "train/loss": 3.0}]
    assert rows_with(rows, "moe/load/") == rows[:1]
