"""Runs are read from what they wrote, in whatever state they were left, and shown by the command."""

import json

import pytest
from fake_run import fake_run

from kleiber.launch.cli import main
from kleiber.records import archive
from kleiber.records.catalog import archive_runs, frame, read_runs
from kleiber.records.locks import locked
from kleiber.records.regular_files import DamagedFile
from kleiber.records.terminal import warn_once


def leave(folder, status, loss=None, error=None):
    metrics = {} if loss is None else {"val/docs/loss": loss, "val/docs/bits_per_byte": loss / 2}
    params = {"total": 2000, "active": 1000, "non_embedding": 500}
    stage = {"params": params, "tokens": 4096, "flops": {"model": 1e9}, "metrics": metrics}
    written = "finished" if status == "missing" else status
    fake_run(folder, [stage], status=written, error=error, overrides=["seed=0"], seconds=3.5)
    if status == "missing":
        (folder / "summary.json").unlink()
        (folder / "metrics.jsonl").unlink()


@pytest.fixture
def study(tmp_path):
    leave(tmp_path / "first" / "a", "finished", 2.5)
    leave(tmp_path / "first" / "b", "failed", error="ValueError: no")
    leave(tmp_path / "first" / "c", "running")
    leave(tmp_path / "first" / "d", "missing")
    return tmp_path / "first"


def test_states_are_read_from_summary_and_lock(study):
    assert [run.status for run in read_runs(study)] == ["finished", "failed", "killed", "missing"]
    with locked(study / "c"):
        assert read_runs(study / "c")[0].status == "running"


def test_runs_below_a_folder_named_wandb_are_listed_and_those_of_wandb_are_not(tmp_path):
    run = fake_run(tmp_path / "wandb" / "runs" / "a")
    for home in (run, run.parent):  # of the run, and of the report of its study
        (home / "wandb" / "offline-run-1" / "files").mkdir(parents=True)
        (home / "wandb" / "offline-run-1" / "files" / "config.yaml").touch()
    for place in (tmp_path, tmp_path / "wandb", run.parent):
        assert [listed.folder for listed in read_runs(place)] == [run]


def test_a_frame_has_one_row_a_run_with_its_metrics(study):
    table = frame(read_runs(study))
    assert list(table["run"]) == ["a", "b", "c", "d"]
    assert table.loc[0, "val/docs/loss"] == 2.5 and table.loc[0, "active"] == 1000


def test_a_tree_has_a_row_for_each_branch_and_they_share_a_trunk(tmp_path):
    leave(tmp_path / "a", "finished", 2.5)
    told = json.loads((tmp_path / "a/summary.json").read_text())
    (stage,) = told["stages"]
    branches = [{**stage, "name": name, "parent": "trunk", "trunk": "trunk"} for name in ("1M", "2M")]
    leave(tmp_path / "b", "killed", 2.5)
    for run, stages in (("a", [{**stage, "name": "trunk"}, *branches]), ("b", [{**stage, "name": "trunk"}])):
        (tmp_path / run / "summary.json").write_text(json.dumps({**told, "stages": stages}))
    table = frame(read_runs(tmp_path))
    assert table["run"].tolist() == ["a", "a", "b"] and table["stage"].tolist()[:2] == ["1M", "2M"]
    assert table["trunk"].tolist() == ["a/trunk", "a/trunk", "b"]
    assert table["loss"].tolist()[:2] == [2.5, 2.5] and table["loss"].isna()[2]


def test_the_command_prints_a_table(study, capsys):
    assert main(["runs", str(study)]) == 0
    told = capsys.readouterr().out
    assert "1 failed, 1 finished, 1 killed, 1 missing" in told and "2.5000" in told and "1.2500" in told


def test_a_folder_without_runs_is_named(study, capsys, tmp_path):
    (tmp_path / "figures").mkdir()
    assert main(["runs", str(tmp_path / "figures")]) == 0
    assert str(tmp_path / "figures") in capsys.readouterr().out
    assert main(["runs", str(study), "--status", "preempted"]) == 0
    assert "preempted" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "figures"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_command_prints_json_of_one_status(study, capsys):
    assert main(["runs", str(study), "--json", "--status", "failed"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["error"]) == ("b", "ValueError: no")


def test_what_is_not_there_is_2_with_a_suggestion(study, capsys):
    assert main(["runs", str(study / "nope")]) == 2
    assert main(["runs", str(study), "--status", "fialed"]) == 2
    assert "Did you mean 'failed'" in capsys.readouterr().err
    assert main(["rnus"]) == 2
    assert "Did you mean 'runs'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("damage", ['{"status": "finished"}', "[]", "\0\0", '{"stages": 3}', "folder"])
def test_a_run_with_a_damaged_summary_is_named_and_the_others_are_shown(study, capsys, damage):
    path = study / "a" / "summary.json"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_text(damage)
    assert main(["runs", str(study)]) == 0
    shown = capsys.readouterr()
    assert "1 failed, 2 killed, 1 missing" in shown.out
    assert str(path) in shown.err and "killed" in shown.err and "not started" not in shown.err
    assert read_runs(study / "a")[0].status == "killed"
    for command in (["eval", "--evals", "perplexity"], ["export", str(study / "out")], ["report"]):
        warn_once.cache_clear()
        assert main([command[0], str(study / "a"), *command[1:]]) == 2
        assert str(path) in capsys.readouterr().err


def test_an_archived_summary_without_its_keys_is_refused(study):
    archive_runs(study)
    (run,) = [run for run in read_runs(study / "runs.jsonl.gz") if run.name == "a"]
    summary = {key: value for key, value in run.summary.items() if key != "seed"}
    archive.append(study / "runs.jsonl.gz", [{"run": "a", "config": {}, "summary": summary, "rows": []}])
    with pytest.raises(DamagedFile, match="seed is missing"):
        read_runs(study / "runs.jsonl.gz")
