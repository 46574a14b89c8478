"""Checkpoints are copied elsewhere, and a run whose folder is lost goes on from a copy, bit-identically."""

import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.records.catalog import read_run
from kleiber.training import checkpoint
from kleiber.training.remote import Remote, fetch_missing

OFTEN = ["callbacks.checkpoints.every=4", "callbacks.log.every=1", "callbacks.samples=null"]


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    system = fsspec.filesystem("memory")
    system.store.clear()
    folder = tmp_path / "runs" / "cell" / "stages" / "main" / "checkpoints"
    folder.mkdir(parents=True)
    return Remote("memory://bucket/all", folder)


def saved(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, torch.nn.Linear(2, 2), {"step": step}, "hash").path


def test_copies_are_kept_as_here_and_fetched_where_there_is_none(remote: Remote, capsys) -> None:
    for step in (2, 4, 6, 8):
        remote.copy(saved(remote.folder, step), 2, ["step-00000002"])
    assert remote.names() == ["step-00000008", "step-00000006", "step-00000002"]
    assert fsspec.filesystem("memory").exists(
        f"/bucket/all/{'/'.join(remote.folder.parts[-5:])}/step-00000008/meta.json"
    )
    config = {"callbacks": {"checkpoints": {"remote": remote.url}}, "resume": "auto"}
    fetch_missing(config, remote.folder)
    assert capsys.readouterr().err == "", "a folder with checkpoints is left alone"
    shutil.rmtree(remote.folder)
    fetch_missing(config, remote.folder)
    fetch_missing(config, remote.folder, "step-00000002")
    assert [checkpoint.read(path).load_state() for path in checkpoint.steps(remote.folder)] == [
        {"step": 8},
        {"step": 2},
    ]
    fsspec.filesystem("memory").rm(f"{remote.open()[1]}/step-00000008/meta.json")
    shutil.rmtree(remote.folder)
    fetch_missing(config, remote.folder)
    assert checkpoint.latest(remote.folder)[0].step == 6, "a copy that was not completed does not count"  # type: ignore[union-attr]
    shutil.rmtree(remote.folder)
    fetch_missing({**config, "resume": "never"}, remote.folder)
    assert remote.names() == [] and checkpoint.steps(remote.folder) == []


def test_a_copy_that_fails_is_reported_and_training_goes_on(remote: Remote, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError("no more room")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", full)
    remote.copy(saved(remote.folder, 2), 2, [])
    assert "step-00000002 is not copied to memory://bucket/all: no more room" in capsys.readouterr().err


def test_copies_that_cannot_be_read_are_no_reason_to_begin_again(remote: Remote, monkeypatch) -> None:
    def closed(*_: object) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.glob", closed)
    config = {"callbacks": {"checkpoints": {"remote": remote.url}}, "resume": "auto"}
    with pytest.raises(ConfigError, match=r"callbacks\.checkpoints\.remote=memory://bucket/all .*access denied"):
        fetch_missing(config, remote.folder)


def test_a_folder_that_cannot_be_opened_is_refused() -> None:
    config, _ = resolve_config(Composer("train").compose(["callbacks.checkpoints.remote=nowhere://bucket"]))
    with pytest.raises(ConfigError, match=r"callbacks\.checkpoints\.remote=nowhere://bucket cannot be opened"):
        check(config)


@pytest.mark.slow
def test_a_run_whose_folder_is_lost_goes_on_bit_identically(launch, interrupted, tmp_path: Path, capsys) -> None:
    unbroken = launch(*OFTEN, root="unbroken")
    copies = f"callbacks.checkpoints.remote=file://{tmp_path}/copies"
    with interrupted(3):
        launch(*OFTEN, copies, code=130)
    (lost,) = (tmp_path / "runs").glob("*/*")
    assert len(list((tmp_path / "copies").rglob("meta.json"))) == 2
    shutil.rmtree(lost)
    again = launch(*OFTEN, copies)
    records = [read_run(folder).summary["stages"][0] for folder in (again, unbroken)]
    assert again == lost and records[0]["curve"] == records[1]["curve"]
    a, b = (
        load_file(f / r["checkpoint"] / "model.safetensors") for f, r in zip((again, unbroken), records, strict=True)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert "fetched step-" in (shown := capsys.readouterr().err) and "resuming at step" in shown
