"""The commands that read folders of runs: what they print, and their exit codes."""

import json

import pytest
from fake_run import fake_run

from kleiber.launch.cli import main


@pytest.fixture
def study(tmp_path):
    fake_run(tmp_path / "a", [{"metrics": {"val/docs/loss": 2.5}}])
    fake_run(tmp_path / "b", status="failed", error="ValueError: no")
    return tmp_path


def test_runs_are_listed_as_json_with_their_folders(study, capsys):
    assert main(["runs", str(study), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["folder"], row["status"]) for row in rows] == [
        (str(study / "a"), "finished"), (str(study / "b"), "failed"),
    ]  # fmt: skip


def test_runs_are_selected_by_status(study, capsys):
    assert main(["runs", str(study), "--json", "--status", "failed"]) == 0
    assert [row["folder"] for row in json.loads(capsys.readouterr().out)] == [str(study / "b")]
    assert main(["runs", str(study), "--status", "running"]) == 0
    out = capsys.readouterr().out
    assert "running" in out and str(study) in out and "finished" not in out


def test_an_error_that_the_user_cannot_correct_is_raised(monkeypatch, study):
    def broken(folder):
        raise ZeroDivisionError

    monkeypatch.setattr("kleiber.records.catalog.read_runs", broken)
    with pytest.raises(ZeroDivisionError):
        main(["runs", str(study)])
