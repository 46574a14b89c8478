"""Which files a config names, and whether one of them was touched; changed contents are in test_main_finished."""

import os
import time
from pathlib import Path

import pytest

from kleiber.runs.input_changes import existing_paths, is_touched, last_change, texts_of


def test_the_files_that_a_config_names_are_its_paths_keys_runs_and_local_copies(tmp_path, monkeypatch):
    run, copy = tmp_path / "run", tmp_path / "data" / "owner" / "name"
    run.mkdir()
    (run / "config.yaml").touch()
    copy.mkdir(parents=True)
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path / "data"))
    config = {"parts": {str(copy): 0.5, "builtin/docs": 0.5}, "path": [f"{run}/main", "owner/name", 3, None]}
    files = [path for text in texts_of(config) for path in existing_paths(text)]
    assert set(files) == {copy, run}


def test_a_change_is_a_write_a_move_or_a_touch_of_any_file_in_a_folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    text = folder / "deep" / "a.txt"
    text.write_text("a")
    config, now = {"data": {"path": str(folder)}}, time.time()
    assert is_touched(config, now - 60) and not is_touched(config, now + 60)
    later = now + 3600
    os.utime(text, (later, later))
    assert last_change(folder) == pytest.approx(later) and is_touched(config, now + 60)
    (folder / "dangling").symlink_to(Path("nowhere"))
    assert last_change(folder) == pytest.approx(later)
