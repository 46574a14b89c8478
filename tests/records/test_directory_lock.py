"""The lock of a run stays where its file is deleted. FAULTS 111."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from kleiber.config.errors import ConfigError
from kleiber.records.directory_lock import directory_holder, is_directory_locked, is_replaced, lock_directory
from kleiber.records.locks import holder, is_locked, locked

HOLDER = """
import sys, time
from pathlib import Path
from kleiber.records.locks import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.process
def test_a_process_whose_lock_file_was_deleted_is_seen_and_named_until_it_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        (tmp_path / ".lock").unlink()
        assert is_locked(tmp_path) and holder(tmp_path) == f"process {process.pid}"
        with pytest.raises(ConfigError, match=f"in use by process {process.pid}"), locked(tmp_path):
            pass
        assert is_locked(tmp_path), "the second process that was refused took nothing away"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_locked(tmp_path) and directory_holder(tmp_path) == ""
        with locked(tmp_path):
            assert holder(tmp_path) == f"process {os.getpid()}"
    finally:
        process.kill()
        process.communicate()


def test_a_file_system_that_locks_no_folders_leaves_the_lock_to_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(9, "Bad file descriptor")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", fail)
        assert not is_directory_locked(tmp_path)
        with lock_directory(tmp_path) as is_free:
            assert is_free


def test_a_folder_that_was_moved_or_deleted_under_its_process_is_noticed(tmp_path):
    run = tmp_path / "run"
    assert not is_replaced(run)
    with locked(run):
        assert not is_replaced(run)
        run.rename(tmp_path / "elsewhere")
        assert is_replaced(run)
        run.mkdir()
        assert is_replaced(run)
    assert not is_replaced(run)
    with locked(run):
        shutil.rmtree(run)
        assert is_replaced(run)
