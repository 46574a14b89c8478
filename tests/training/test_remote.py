"""Checkpoints are copied elsewhere, and a run whose folder is lost goes on from a copy, bit-identically."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from small_run import REPOSITORY

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.records.catalog import read_run
from kleiber.records.locks import try_lock
from kleiber.training import checkpoint
from kleiber.training.callbacks.fault_tolerance import Checkpoints
from kleiber.training.remote import LOCK, Remote, latest, read
from kleiber.training.step import Rollback

OFTEN = ["callbacks.checkpoints.every=4", "callbacks.log.every=1", "callbacks.samples=null"]


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    system = fsspec.filesystem("memory")
    system.store.clear()
    folder = tmp_path / "runs" / "cell-hash" / "stages" / "main" / "checkpoints"
    folder.mkdir(parents=True)
    return Remote("memory://bucket/all", folder)


@pytest.fixture
def config(remote: Remote) -> dict:
    return {"callbacks": {"checkpoints": {"remote": remote.url}}, "resume": "auto"}


def saved(folder: Path, step: int, config_hash: str = "hash") -> Path:
    return checkpoint.save(folder, step, torch.nn.Linear(2, 2), {"step": step}, config_hash).path


def is_valid(path: Path) -> bool:
    try:
        return checkpoint.read(path).path == path
    except checkpoint.Damaged:
        return False


def step_of(config: dict, folder: Path, limit: int | None = None) -> int | None:
    """The step of the newest checkpoint, of which the name and the files are read again."""
    newest, _ = latest(config, folder, limit)
    return None if newest is None else checkpoint.read(newest.path).load_state()["step"]


def test_copies_are_kept_as_here_and_fetched_where_there_is_none(remote: Remote, config: dict, capsys) -> None:
    for step in (2, 4, 6, 8):
        remote.copy(saved(remote.folder, step), 2, ["step-00000002"])
    assert remote.names() == ["step-00000008", "step-00000006", "step-00000002"]
    assert fsspec.filesystem("memory").exists(
        f"/bucket/all/{'/'.join(remote.folder.parts[-5:])}/step-00000008/meta.json"
    )
    assert step_of(config, remote.folder) == 8
    assert capsys.readouterr().err == "", "what is here already is not fetched"
    shutil.rmtree(remote.folder)
    assert step_of(config, remote.folder) == 8
    assert read(config, remote.folder, "step-00000002").step == 2
    assert [checkpoint.read(path).load_state() for path in checkpoint.steps(remote.folder)] == [
        {"step": 8},
        {"step": 2},
    ]
    fsspec.filesystem("memory").rm(f"{remote.open()[1]}/step-00000008/meta.json")
    shutil.rmtree(remote.folder)
    assert step_of(config, remote.folder) == 6, "a copy that was not completed does not count"
    shutil.rmtree(remote.folder)
    assert step_of({**config, "resume": "never"}, remote.folder) is None
    assert remote.names() == [] and checkpoint.steps(remote.folder) == []


def test_the_values_of_a_frozen_reference_are_copied_and_fetched_with_a_checkpoint(
    remote: Remote, config: dict
) -> None:
    files = [remote.folder.parent / f"reference.{ending}" for ending in ("npz", "json")]
    remote.copy(saved(remote.folder, 2), 2, [])
    shutil.rmtree(remote.folder.parent)
    assert step_of(config, remote.folder) == 2
    assert not any(file.exists() for file in files), "most objectives have no reference"
    for file in files:
        file.write_bytes(file.name.encode())
    remote.copy(saved(remote.folder, 4), 2, [])
    shutil.rmtree(remote.folder.parent)
    assert step_of(config, remote.folder) == 4
    assert [file.read_bytes() for file in files] == [b"reference.npz", b"reference.json"]
    assert {path.name for path in remote.folder.iterdir()} == {"step-00000004"}


def test_copies_that_were_not_completed_are_removed(remote: Remote, config: dict) -> None:
    system, there = remote.open()
    for name in ("step-00000002", "step-00000009", "other"):
        system.pipe_file(f"{there}/{name}/model.safetensors", b"half")
    remote.copy(saved(remote.folder, 4), 1, ["step-00000002"])
    assert {place.split("/")[-2] for place in system.find(there)} == {"step-00000004", "other"}
    system.pipe_file(f"{there}/step-00000006/model.safetensors", b"half")
    shutil.rmtree(remote.folder)
    assert step_of({**config, "resume": "never"}, remote.folder) is None
    assert [place.split("/")[-2] for place in system.find(there)] == ["other"]


@pytest.mark.slow
def test_the_newest_that_is_valid_here_or_there_counts(remote: Remote, config: dict, tmp_path: Path) -> None:
    """Each of two steps is missing, damaged or intact, here and there."""
    system, there = remote.open()
    intact = [saved(tmp_path, step) for step in (10, 20)]
    for states in itertools.product(("missing", "damaged", "intact"), repeat=4):
        shutil.rmtree(remote.folder)
        system.store.clear()  # type: ignore[attr-defined]
        for path, here, copy in zip(intact, states[:2], states[2:], strict=True):
            if copy != "missing":
                for file in path.iterdir():
                    system.pipe_file(f"{there}/{path.name}/{file.name}", file.read_bytes())
            if copy == "damaged":
                system.pipe_file(f"{there}/{path.name}/state.pt", b"")
            if here != "missing":
                shutil.copytree(path, remote.folder / path.name)
            if here == "damaged":
                (remote.folder / path.name / "state.pt").write_bytes(b"")
        remote.folder.mkdir(parents=True, exist_ok=True)
        kept = {path: path.stat().st_ino for path in checkpoint.steps(remote.folder) if is_valid(path)}
        usable = [step for step, state in zip((10, 20, 10, 20), states, strict=True) if state == "intact"]
        assert step_of(config, remote.folder) == max(usable, default=None), states
        assert all(path.stat().st_ino == number and is_valid(path) for path, number in kept.items()), states
        assert not [*remote.folder.glob("*.part-*")]


def test_a_copy_of_another_config_is_named_and_not_taken(remote: Remote, config: dict) -> None:
    for step, config_hash in ((10, "hash"), (20, "other")):
        remote.copy(saved(remote.folder, step, config_hash), 2, [])
    shutil.rmtree(remote.folder)
    newest, defects = latest(config, remote.folder)
    assert newest is not None and newest.step == 10 and len(defects) == 1
    assert "step-00000020 in memory://bucket/all: its config has the hash other, and this run hash" in defects[0]
    assert [path.name for path in checkpoint.steps(remote.folder)] == ["step-00000010"]


def test_copies_that_another_process_removes_are_no_error(remote: Remote, config: dict, monkeypatch, capsys) -> None:
    """Each process has a list of the copies from before another one removed some."""
    for step in (2, 4):
        remote.copy(saved(remote.folder, step), 2, [])
    before = ["step-00000006", *remote.names()]
    shutil.rmtree(remote.folder)
    monkeypatch.setattr(Remote, "names", lambda _: before)
    assert step_of(config, remote.folder) == 4
    shutil.rmtree(remote.folder)
    for _ in range(2):
        assert step_of({**config, "resume": "never"}, remote.folder) is None
    monkeypatch.undo()
    assert remote.names() == []


def test_copies_are_removed_while_no_other_process_fetches(remote: Remote, monkeypatch) -> None:
    free: list[bool] = []

    def note(*_: object, **__: object) -> None:
        with try_lock(remote.folder.parent / LOCK) as is_free:
            free.append(is_free)

    remote.copy(saved(remote.folder, 2), 2, [])
    (remote.folder.parent / LOCK).touch()
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.rm", note)
    remote.remove(remote.names())
    assert free == [False]


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_rollback_goes_back_without_the_copies_of_an_interruption(
    remote: Remote, config: dict, monkeypatch, capsys, is_readable: bool
) -> None:
    """Copies of steps 10 (planned) and 12; that of 13 had failed. Where they cannot be removed, they do not count."""
    for step in (10, 12, 13):
        path = saved(remote.folder, step)
        if step != 13:
            remote.copy(path, 3, [])

    def closed(*_: object, **__: object) -> None:
        raise PermissionError("access denied")

    if not is_readable:
        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.rm", closed)
    alarm = Rollback(14, "a spike", [])
    callback = Checkpoints(remote.folder, "hash", every=5, remote=remote.url)
    callback.on_exception(SimpleNamespace(is_global_zero=True), None, alarm)  # type: ignore[arg-type]
    warning = "copies after step 10 are not removed from memory://bucket/all: access denied"
    assert (warning in capsys.readouterr().err) != is_readable
    assert [path.name for path in checkpoint.steps(remote.folder)] == ["step-00000010"]
    assert remote.names()[-1] == "step-00000010" and len(remote.names()) == 1 + (not is_readable)
    assert step_of(config, remote.folder, alarm.target) == 10
    shutil.rmtree(remote.folder)
    assert step_of(config, remote.folder, alarm.target) == 10


def test_a_copy_that_fails_is_reported_and_training_goes_on(remote: Remote, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError("no more room")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", full)
    remote.copy(saved(remote.folder, 2), 2, [])
    assert "step-00000002 is not copied to memory://bucket/all: no more room" in capsys.readouterr().err


def test_copies_that_cannot_be_read_are_no_reason_to_begin_again(remote: Remote, config: dict, monkeypatch) -> None:
    def closed(*_: object) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.glob", closed)
    with pytest.raises(ConfigError, match=r"callbacks\.checkpoints\.remote=memory://bucket/all .*access denied"):
        latest(config, remote.folder)


def test_a_folder_that_cannot_be_opened_is_refused() -> None:
    config, _ = resolve_config(Composer("train").compose(["callbacks.checkpoints.remote=nowhere://bucket"]))
    with pytest.raises(ConfigError, match=r"callbacks\.checkpoints\.remote=nowhere://bucket cannot be opened"):
        check(config)


PREFERENCE = ["data=preference", f"data.path={REPOSITORY / 'tests/data/preference.jsonl'}", "objective=dpo"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_a_run_goes_on_from_copies_bit_identically(launch, interrupted, tmp_path: Path, capsys, objective) -> None:
    """A machine loses the folder of the run, and another one still has it as it was before that."""
    options = list(OFTEN)
    if objective == "dpo":
        options += [*PREFERENCE, "init=checkpoint", f"init.path={launch('trainer.max_steps=2', root='base')}"]
    unbroken = launch(*options, root="unbroken")
    copies = f"callbacks.checkpoints.remote=file://{tmp_path}/copies"
    with interrupted(3):
        launch(*options, copies, code=130)
    (lost,) = (tmp_path / "runs").glob("*/*")
    assert len(list((tmp_path / "copies").rglob("meta.json"))) == 2
    behind = tmp_path / "behind" / lost.relative_to(tmp_path / "runs")
    shutil.copytree(lost, behind)
    shutil.rmtree(lost)
    for root, folder in (("runs", lost), ("behind", behind)):
        capsys.readouterr()
        assert launch(*options, copies, root=root) == folder
        assert "fetched step-" in (shown := capsys.readouterr().err) and "resuming at step" in shown
        ours, theirs = (read_run(run).summary["stages"][0] for run in (folder, unbroken))
        assert ours["curve"] == theirs["curve"] and ours["checkpoint"] == theirs["checkpoint"]
        a, b = (load_file(run / theirs["checkpoint"] / "model.safetensors") for run in (folder, unbroken))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
