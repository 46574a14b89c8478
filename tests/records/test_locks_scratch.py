"""What a killed process leaves is removed by a later one; what a live process uses is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kleiber.records import locks as module
from kleiber.records.files import write_json
from kleiber.records.locks import locked, scratch_folder, sweep_parts, sweep_scratch, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from kleiber.records.locks import scratch_folder
with scratch_folder("kleiber-test-", Path(sys.argv[1])) as folder:
    (folder / "content").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""
DEAD = 4_194_305  # above the largest process id of Linux


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.process
def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    process, folder = hold(tmp_path)
    mine = tmp_path / "kleiber-test-of-a-user"
    mine.mkdir()
    try:
        with scratch_folder("kleiber-test-", tmp_path):
            assert (folder / "content").is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert folder.exists()
        with scratch_folder("kleiber-test-", tmp_path) as own:
            assert not folder.exists() and own.is_dir() and mine.is_dir()
            sweep_scratch(tmp_path, "kleiber-")
            assert own.is_dir()
        assert not own.exists()
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = module.fcntl.flock, []

    def flock(handle: int, kind: int) -> None:
        lock(handle, kind)
        for file in tmp_path.glob(f"*/{module.SCRATCH}") if not removed else ():
            removed.append(file.parent)
            file.unlink()

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with scratch_folder("x-", tmp_path) as folder:
        assert folder.is_dir() and removed and folder != removed[0]


def test_the_default_place_is_that_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder("x-") as folder:
        assert folder.parent == tmp_path


def test_a_lock_that_is_a_link_or_missing_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("")
    for name, free in (("link", False), ("nothing", False), ("file", True)):
        with try_lock(tmp_path / name) as taken:
            assert taken == free
    with try_lock(tmp_path / "file") as first, try_lock(tmp_path / "file") as second:
        assert first and not second


def parts(folder: Path, process: int) -> list[Path]:
    """Makes a file, a folder and a dangling link that the process could have been writing."""
    file, below, link = (folder / f"{name}.part-{process}" for name in (".a.json", "step-00000003", ".b"))
    file.write_text("half")
    below.mkdir()
    (below / "model").write_text("half")
    link.symlink_to(folder / "nowhere")
    return [file, below, link]


def test_parts_of_dead_processes_are_removed(tmp_path: Path) -> None:
    kept = [*parts(tmp_path, os.getpid()), *parts(tmp_path, os.getppid())]
    others = [tmp_path / name for name in ("my.part-time", f"model.zip.part-{DEAD}")]
    for other in others:
        other.write_text("a user's")
    dead = parts(tmp_path, DEAD)
    sweep_parts(tmp_path.iterdir())
    assert not any(os.path.lexists(path) for path in dead)
    assert all(os.path.lexists(path) for path in [*kept, *others])


def test_a_process_that_started_after_the_file_did_not_write_it(tmp_path: Path) -> None:
    path = tmp_path / f".a.part-{os.getppid()}"
    path.write_text("half")
    os.utime(path, (time.time() - 1e8,) * 2)
    sweep_parts([path])
    assert not path.exists()


def test_locking_a_run_and_writing_a_file_remove_the_parts_in_their_places(tmp_path: Path) -> None:
    (tmp_path / "stages" / "main" / "checkpoints").mkdir(parents=True)
    dead = parts(tmp_path, DEAD) + parts(tmp_path / "stages" / "main" / "checkpoints", DEAD)
    with locked(tmp_path):
        assert not any(os.path.lexists(path) for path in dead)
    stray, other = (tmp_path / f".{name}.part-{DEAD}" for name in ("a[1].json", "b.json"))
    stray.write_text("half")
    other.write_text("half")
    write_json(tmp_path / "a[1].json", {})
    assert not stray.exists() and other.exists()
