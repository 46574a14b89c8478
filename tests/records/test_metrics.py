"""metrics.jsonl is read as it was written, without rows cut short."""

import json
import math
import os

import pytest

from kleiber.config.errors import ConfigError
from kleiber.records.metrics import (
    METRICS_FILE,
    LoggedRows,
    condense,
    read_rows,
    rows_with,
    thin,
)
from kleiber.records.regular_files import DamagedFile
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


@pytest.mark.parametrize(
    "line",
    ['{"step": "1"}', '{"step": 1.0}', '{"step": true}', "[]", "3", '{"step": 1, "a": []}', '{"step": 1, "a": {}}',
     '{"step": 1, "stage": 3}', '{"step": 1, "a": ' + "9" * 41 + "}", '{"step": ' + "9" * 5000 + "}", "[" * 5000],
)  # fmt: skip
def test_a_line_that_no_run_logs_is_passed_over(tmp_path, line):
    (tmp_path / METRICS_FILE).write_text(f'{{"step": 1, "train/loss": 3.0}}\n{line}\n{{"step": 2, "x": NaN}}\n')
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [1, 2] and math.isnan(rows[1]["x"])


def condensed_at_once(rows):
    """What `condense` returns, from a list in memory."""
    shorter = [{key: value for key, value in row.items() if not key.startswith("moe/load/")} for row in rows]
    kinds: dict[tuple, list[int]] = {}
    for number, row in enumerate(shorter):
        if row.keys() - {"stage", "step"}:
            kinds.setdefault((row.get("stage"), *sorted(row)), []).append(number)
    return [shorter[number] for number in sorted(number for numbers in kinds.values() for number in thin(numbers))]


def test_a_long_log_is_condensed_without_being_held_in_memory(tmp_path):
    keys = [
        {"train/loss": 1.0, "train/lr": 0.1},
        {"val/docs/loss": 2.0},
        {"moe/load/0/1": 0.5},
        {},
        {"moe/dead/0": 1.0},
    ]
    rows = [{"step": step, "stage": "ab"[step % 2], **keys[step * 7 % 5], **keys[step % 3]} for step in range(3000)]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = condense(LoggedRows(tmp_path))
    assert kept == condense(rows) == condensed_at_once(rows) and len(kept) < len(rows)
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps({"step": n, "x" * n: 1.0}) + "\n" for n in range(9, 2012)))
    with pytest.raises(ConfigError, match="2,000"):
        condense(LoggedRows(tmp_path))


def test_a_log_that_would_fill_the_memory_is_refused_with_its_size_where_all_of_it_is_needed(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "a": 1.0}\n')
    os.truncate(tmp_path / METRICS_FILE, 3 * 2**30)
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl.*3,221,225,472 bytes"):
        read_rows(tmp_path)
