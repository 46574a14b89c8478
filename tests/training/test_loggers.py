"""JsonlLogger of metrics on disk, their state after a resume."""

import json

import pytest

from kleiber.training.loggers import CsvLogger, JsonlLogger


@pytest.mark.parametrize("logger", [JsonlLogger, CsvLogger])
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


@pytest.mark.parametrize("logger", [JsonlLogger, CsvLogger])
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


@pytest.mark.parametrize("logger", [JsonlLogger, CsvLogger])
def test_a_stage_that_begins_anew_has_one_row_a_step(tmp_path, logger):
    """A kill between the first score, which is a row of step 0, and the first checkpoint."""
    rows = logger(tmp_path)
    for stage in ("first", "second"):
        rows.begin(stage, 0)
        rows.log_metrics({"val/loss": 3.0}, 0)
    whole = rows.path.read_text()
    rows.begin("second", 0)
    rows.log_metrics({"val/loss": 3.0}, 0)
    assert rows.path.read_text() == whole


@pytest.mark.parametrize("logger", [JsonlLogger, CsvLogger])
def test_a_kill_while_the_file_is_rewritten_loses_no_row(tmp_path, logger, monkeypatch):
    rows = logger(tmp_path)
    rows.log_metrics({"train/loss": 1.5}, 1)
    whole = rows.path.read_text()

    def killed(step):
        yield whole[:5]
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "_rows_before", killed)
    with pytest.raises(KeyboardInterrupt):
        rows.begin(None, 1)
    assert rows.path.read_text() == whole


@pytest.mark.parametrize(
    "damage",
    [b'{"step": 2, "train\n', b"3\n", b"\0" * 100 + b"\n", b"\0" * 100, b"\xff\n", b'{"a": 1}\n', b"[" * 9999 + b"\n"],
)
@pytest.mark.parametrize("logger", [JsonlLogger, CsvLogger])
def test_intact_rows_are_kept_and_damaged_lines_reported_in_one_line(tmp_path, logger, damage, capsys):
    rows = logger(tmp_path)
    rows.log_metrics({"train/loss": 1.5}, 1)
    whole = rows.path.read_bytes()
    rows.path.write_bytes(whole + damage)
    rows.begin(None, 1)
    assert rows.path.read_bytes() == whole
    report = capsys.readouterr().err
    assert report.count("\n") == damage.endswith(b"\n") and (rows.path.name in report) == damage.endswith(b"\n")


@pytest.mark.parametrize("content", ["", "step,met", "1,train/loss,2.0\n"])
def test_metrics_csv_gets_the_header_that_it_lost(tmp_path, content):
    rows = CsvLogger(tmp_path)
    rows.path.write_text(content)
    rows.begin(None, 1)
    rows.log_metrics({"train/loss": 1.5}, 2)
    assert rows.path.read_text().splitlines()[0] == "step,metric,value"
    assert rows.path.read_text().endswith("2,train/loss,1.5\n")


def test_rows_are_json_objects_with_their_step(tmp_path):
    JsonlLogger(tmp_path).log_metrics({"a": 1.0}, 7)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 7, "a": 1.0}
