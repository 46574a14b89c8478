import errno
import os
import time
from pathlib import Path
from threading import Thread

import pytest

from kleiber.config.errors import ConfigError
from kleiber.data.cache import cached_folder
from kleiber.records.locks import holder, is_locked, locked, wait_for_lock


def test_a_held_lock_is_waited_for(tmp_path):
    waited = []
    with locked(tmp_path):
        assert is_locked(tmp_path) and holder(tmp_path) == f"process {os.getpid()}"
        thread = Thread(target=lambda: wait(tmp_path / ".lock", waited))
        thread.start()
        while not waited:
            time.sleep(0.01)
        assert waited == ["waiting"]
    thread.join()
    assert waited == ["waiting", "locked"]


def wait(path: Path, events: list[str]) -> None:
    with wait_for_lock(path, lambda: events.append("waiting")):
        events.append("locked")


def test_a_folder_can_be_locked_any_number_of_times(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\0" * 4)
    for _ in range(4):
        with locked(tmp_path):
            assert (tmp_path / ".lock").read_text() == str(os.getpid())


def place(kind: str, path: Path, target: Path) -> None:
    """Puts something at `path` that is not a lock."""
    target.write_text("my thesis")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target.with_name("nothing"))
    elif kind == "hard link":
        os.link(target, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "folder"])
def test_what_is_not_a_lock_is_refused_and_stays_as_it_is(tmp_path, kind):
    target, run = tmp_path / "thesis.txt", tmp_path / "run"
    run.mkdir()
    place(kind, run / ".lock", target)
    assert not is_locked(run)
    with pytest.raises(ConfigError, match=r"\.lock is"), locked(run):
        pass
    with pytest.raises(ConfigError, match=r"\.lock is"), wait_for_lock(run / ".lock", list):
        pass
    assert target.read_text() == "my thesis" and not (tmp_path / "nothing").exists()
    assert (run / ".lock").lstat().st_nlink == (2 if kind in ("hard link", "folder") else 1)


def test_a_link_in_the_place_of_a_cache_lock_is_refused(tmp_path):
    target = tmp_path / "thesis.txt"
    target.write_text("my thesis")
    folder, _ = cached_folder(tmp_path, "docs", {}, lambda path: {})
    lock = folder.with_name(f".{folder.name}.lock")
    lock.unlink()
    lock.symlink_to(target)
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="link"):
        cached_folder(tmp_path, "docs", {}, lambda path: {})
    assert target.read_text() == "my thesis"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_named_with_the_lock_and_the_fix(tmp_path, monkeypatch, number):
    """FAULTS 123."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    assert not is_locked(tmp_path)
    for lock in (locked(tmp_path), wait_for_lock(tmp_path / ".lock", list)):
        with pytest.raises(ConfigError, match="KLEIBER_ROOT") as error, lock:
            pass
        assert str(tmp_path / ".lock") in str(error.value) and os.strerror(number) in str(error.value)
