"""FAULTS 101, 102 and 106: a stranger's config runs no code, fetches and searches nothing, and writes nowhere else."""

import shutil
from collections.abc import Iterator

import pytest
from faults.beacon import TEXT, Beacon, serving
from small_run import SHAPE, TINY

from kleiber.launch.cli import main as kleiber
from kleiber.launch.local_pool import Basic, Process
from kleiber.launch.main import main as train
from kleiber.records import archive
from kleiber.records.catalog import archive_runs, read_runs


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch) -> None:
    monkeypatch.setattr(Process, "run", lambda _self, cells: Basic().run(cells))


@pytest.fixture
def beacon() -> Iterator[Beacon]:
    with serving() as server:
        yield server


DOORS = {
    "eval": lambda run, out: kleiber(["eval", str(run), "--evals", "perplexity"]),
    "judge": lambda run, out: kleiber(
        ["judge", str(run), f"{run}/main", "--simulate", "variety", "--out", str(out / "judged.jsonl")]
    ),
    "reproduce": lambda run, out: kleiber(["reproduce", str(run), "--out", str(out / "again")]),
    "init": lambda run, out: train([*TINY, *SHAPE, "init=checkpoint", f"init.path={run}", f"root={out / 'tuned'}"]),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_fetches_the_data_of_a_foreign_config(foreign, beacon, tmp_path, capsys, door):
    run = foreign("data.path", beacon.url)
    assert DOORS[door](run, tmp_path) == 2
    assert f"config.yaml: data.path={beacon.url} would be fetched" in capsys.readouterr().err
    assert beacon.requests == [] and not (tmp_path / "again").exists()
    assert not (tmp_path / "tuned").exists(), "no folder is left"


@pytest.mark.parametrize("door", DOORS)
def test_no_door_searches_the_disk_for_it(foreign, tmp_path, capsys, monkeypatch, door):
    run = foreign("data.path", "/**/*.txt")
    monkeypatch.setattr("kleiber.data.location.find_files", lambda path: pytest.fail(f"searched for {path}"))
    assert DOORS[door](run, tmp_path) == 2
    assert "--data '/**/*.txt'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_reader_can_allow_it(foreign, beacon, tmp_path, capsys):
    run = foreign("data.path", beacon.url)
    assert kleiber(["eval", str(run), "--evals", "perplexity", "--data", beacon.url]) == 0
    assert beacon.requests and capsys.readouterr().out.startswith("perplexity/text,")
    start = ["init=checkpoint", f"init.path={run}", f"root={tmp_path / 'tuned'}"]
    assert train([*TINY, *SHAPE, *start, f"allow_data=['{beacon.url}']"]) == 0
    beacon.requests.clear()
    assert kleiber(["reproduce", str(run), "--out", str(tmp_path / "again"), "--data", beacon.url]) in (0, 5)
    assert beacon.requests


@pytest.mark.slow
def test_other_data_is_evaluated_without_opening_it(foreign, beacon, tmp_path, capsys):
    run, other = foreign("data.path", beacon.url), tmp_path / "other.txt"
    other.write_bytes(TEXT)
    assert kleiber(["eval", str(run), "--evals", "perplexity", "--data", str(other)]) == 0
    assert beacon.requests == [] and "perplexity/other" in capsys.readouterr().out


@pytest.mark.slow
def test_what_opens_no_data_needs_no_permission(foreign, beacon, tmp_path):
    run = foreign("data.path", beacon.url)
    assert kleiber(["export", str(run), str(tmp_path / "exported")]) == 0
    assert kleiber(["generate", str(run), "--prompt", "a", "--tokens", "2"]) == 0
    assert beacon.requests == []


HARNESS = {"_target_": "kleiber.evals.Harness", "tasks": ["a"], "task_files": "tasks"}
LIGHTNING = {"_target_": "lightning.pytorch.callbacks.DeviceStatsMonitor"}
PERPLEXITY = {"_target_": "kleiber.evals.Perplexity", "data": ["http://127.0.0.1:9/x"]}
REMOTE = "callbacks.checkpoints.remote"


HOSTILE = {  # key of a node and its value, by the key that the error names
    "evals.harness.task_files": ("evals.harness", HARNESS),
    "evals.perplexity.data[0]": ("evals.perplexity", PERPLEXITY),
    "callbacks.other._target_": ("callbacks.other", LIGHTNING),
    REMOTE: (REMOTE, "file://victim"),
}


@pytest.mark.parametrize("request_key", HOSTILE)
def test_reproducing_neither_runs_code_nor_writes_elsewhere(foreign, tmp_path, capsys, monkeypatch, request_key):
    monkeypatch.chdir(tmp_path)
    run = foreign(*HOSTILE[request_key])
    assert DOORS["reproduce"](run, tmp_path) == 2
    assert f"config.yaml: {request_key}=" in capsys.readouterr().err
    assert not (tmp_path / "victim").exists() and not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_copy_elsewhere_is_made_or_left_out_as_the_command_says(foreign, tmp_path, capsys):
    run = foreign(REMOTE, f"file://{tmp_path}/victim")
    out, mine = tmp_path / "again", f"file://{tmp_path}/mine"
    assert kleiber(["reproduce", str(run), "--out", str(out), f"{REMOTE}=null"]) == 0
    assert not (tmp_path / "victim").exists()
    assert kleiber(["reproduce", str(run), "--out", str(out), f"{REMOTE}='{mine}'"]) == 0
    assert not (tmp_path / "victim").exists() and list((tmp_path / "mine").rglob("meta.json"))
    for setting in ("seed=3", "callbacks.checkpoints.nothing=1", f"{REMOTE}=a,b"):
        assert kleiber(["reproduce", str(run), "--out", str(out), setting]) == 2
        assert setting.partition("=")[0] in capsys.readouterr().err


def test_an_archived_run_is_reproduced_under_the_same_rules(foreign, tmp_path, capsys):
    run = foreign(REMOTE, f"file://{tmp_path}/victim")
    archive_runs(run.parent)
    alone = tmp_path / "alone" / archive.NAME
    alone.parent.mkdir()
    shutil.copy(run.parent / archive.NAME, alone)
    assert kleiber(["reproduce", str(alone), "--out", str(tmp_path / "again")]) == 2
    assert REMOTE in capsys.readouterr().err and not (tmp_path / "victim").exists()
    assert [run.status for run in read_runs(alone.parent)] == ["finished"]


def test_continuing_a_foreign_run_follows_the_command_alone(foreign, tmp_path):
    run = foreign(REMOTE, f"file://{tmp_path}/victim")
    assert train([*TINY, *SHAPE, f"resume={run}", "budget.steps=4"]) == 0
    assert not (tmp_path / "victim").exists()


def test_a_model_that_a_foreign_run_passes_on_is_checked(foreign, tmp_path, capsys):
    run = foreign("model.norm_eps", HARNESS)
    assert DOORS["init"](run, tmp_path) == 2
    assert "model.norm_eps.task_files=tasks is code" in capsys.readouterr().err
