"""Rows of metrics on disk, their state after a resume, and W&B without a server."""

import json
import time

import pytest

from kleiber.training import loggers
from kleiber.training.loggers import CsvLogger, Rows


@pytest.mark.parametrize("logger", [Rows, CsvLogger])
def test_rows_after_the_checkpoint_and_a_cut_last_row_are_forgotten(tmp_path, logger):
    unbroken = logger(tmp_path)
    for step in (1, 2):
        unbroken.log_metrics({"train/loss": 1.5 / step}, step)
    expected = unbroken.path.read_text()
    unbroken.log_metrics({"train/loss": 9.0}, 3)
    with open(unbroken.path, "a") as file:
        file.write('{"step": 4, "train')
    unbroken.begin(None, 2)
    assert unbroken.path.read_text() == expected


@pytest.mark.parametrize("logger", [Rows, CsvLogger])
def test_a_stage_that_begins_again_forgets_its_own_rows_alone(tmp_path, logger):
    rows = logger(tmp_path)
    for stage, steps in (("trunk", (1, 2, 3)), ("2M", (2, 3))):
        rows.begin(stage, 0 if stage == "trunk" else 1)
        for step in steps:
            rows.log_metrics({"train/loss": 1.0 / step}, step)
    whole = rows.path.read_text()
    rows.log_metrics({"train/loss": 9.0}, 4)
    rows.begin("2M", 3)
    assert rows.path.read_text() == whole
    assert "trunk" in whole and "2M" in whole


def test_rows_are_json_objects_with_their_step(tmp_path):
    Rows(tmp_path).log_metrics({"a": 1.0}, 7)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 7, "a": 1.0}


def test_auto_without_a_key_is_offline_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "WANDB_API_KEY" in (loggers._unreachable() or "")


def test_a_server_that_does_not_answer_costs_two_seconds_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")
    began = time.monotonic()
    assert "localhost" in (loggers._unreachable() or "")
    assert time.monotonic() - began < 2
