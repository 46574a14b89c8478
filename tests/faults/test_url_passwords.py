"""FAULTS 105: a password or token in a URL is used, and reaches no file, no output, no name and no record of W&B."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from faults.beacon import Beacon, serving
from small_run import REPOSITORY, SHAPE, TINY, last_of_each

from kleiber.config.url_secrets import VARIABLE
from kleiber.launch.cli import main as kleiber
from kleiber.launch.main import main as train

SECRET = "hunter2"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Beacon]:
    """Requires the secret. What a command writes, caches included, is below `tmp_path`."""
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with serving(SECRET) as beacon:
        yield beacon


def leaks(place: Path) -> list[Path]:
    """Files whose name or content has the secret."""
    files = [path for path in place.rglob("*") if path.is_file()]
    return [path for path in files if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


def overrides(url: str, *further: str) -> list[str]:
    words = [*TINY, *SHAPE, "root=runs", f"data.path='{url}'", *further]
    return last_of_each(words)


def urls(server: Beacon) -> list[str]:
    return [f"http://user:{SECRET}@{server.place}/text.txt", f"http://{server.place}/text.jsonl?token={SECRET}"]


@pytest.mark.parametrize("kind", [0, 1], ids=["password", "token"])
def test_a_run_reads_with_the_secret_and_stores_none(server, tmp_path, capfd, kind):
    assert train(overrides(urls(server)[kind])) == 0
    (run,) = (tmp_path / "runs").glob("*/*-*")
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]["path"]
    assert stored == f"http://{server.place}/text.{('txt', 'jsonl')[kind]}"
    assert train(overrides(stored)) == 0, "the same run, finished"
    assert [path.name for path in (tmp_path / "runs").glob("*/*-*")] == [run.name]
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err and leaks(tmp_path) == []


@pytest.mark.slow
def test_errors_do_not_show_it_whether_it_is_refused_or_the_command_is_wrong(server, tmp_path, capfd, monkeypatch):
    other = "hunter3"
    wrong = urls(server)[0].replace(SECRET, other)
    monkeypatch.setenv("A_URL", wrong)
    for words in (
        overrides(wrong), overrides(wrong, "seed=x"), overrides("${oc.env:A_URL}"), overrides(wrong, "data.pth=3"),
        [*overrides(wrong), f"data.path='{wrong}l'"], [f"data.path={wrong}'"],
        [f"callbacks.checkpoints.remote='{wrong}'", *overrides(server.url)],
    ):  # fmt: skip
        assert train(words, typed=True) == 2
    for command in (["data", wrong], ["eval", wrong, "--evals", "perplexity"], ["generate", wrong, "--prompt", "a"]):
        assert kleiber(command) == 2
    shown = capfd.readouterr()
    assert server.place in shown.err and other not in shown.out + shown.err
    assert not any(other.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_file_of_the_config_and_the_environment_may_have_it(server, tmp_path, monkeypatch):
    (tmp_path / "conf" / "data").mkdir(parents=True)
    text = "_target_: kleiber.data.Text\npath: ${oc.env:A_URL}\ntext: text\ntokenizer: bytes\n"
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(text)
    monkeypatch.setenv("A_URL", urls(server)[0])
    words = [word for word in overrides("x", "data=mine") if not word.startswith("data.path")]
    assert train(["--config-dir", str(tmp_path / "conf"), *words]) == 0
    assert leaks(tmp_path) == []


@pytest.mark.slow
def test_a_later_session_gets_it_from_the_environment_of_fsspec(server, tmp_path, monkeypatch):
    url = urls(server)[0]
    assert train(overrides(url)) == 0
    (run,) = (tmp_path / "runs").glob("*/*-*")
    monkeypatch.setenv(VARIABLE, "{}")
    command = ["eval", str(run), "--evals", "perplexity", "--data", server.url]
    assert kleiber(command) == 2
    import fsspec

    header = {"headers": {"Authorization": "Basic dXNlcjpodW50ZXIy"}}
    monkeypatch.setitem(fsspec.config.conf, "http", header)  # as FSSPEC_HTTP sets it when fsspec is imported
    assert kleiber(command) == 0
    assert leaks(tmp_path) == []


SWEEPS = {
    "sweep": ["-m", "seed=1,2"],
    "two ranks": ["trainer=ddp", "trainer.devices=2"],
    "dry run": ["dry_run=true"],
    "W&B": ["logger=wandb"],
    "submitit": ["-m", "seed=1", "launcher=submitit", "launcher.cluster=local"],
}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("kind", SWEEPS)
def test_the_processes_of_a_command_read_with_it_and_store_none(server, tmp_path, kind):
    words = overrides(urls(server)[0], *SWEEPS[kind])
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, str(REPOSITORY / "train.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr and leaks(tmp_path) == [] and server.requests
