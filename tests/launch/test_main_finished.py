"""A finished run says whether its inputs changed after it started, and compares them only where a file was touched."""

import os
import shutil
import time
from pathlib import Path

import pytest
from small_run import REPOSITORY

import kleiber.runs.inputs
from kleiber.launch.main import existing_paths, is_touched, last_change, texts_of

STEPS = ["budget.steps=1", "callbacks.samples=null", "eval.every_steps=0"]


def warnings(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_the_command_of_a_finished_run_names_changed_data_and_compares_untouched_data_never(
    launch, tmp_path, capsys, monkeypatch
):
    place = tmp_path / "mine.txt"
    shutil.copy(REPOSITORY / "tests/data/tiny.txt", place)
    long_ago = time.time() - 3600
    os.utime(place, (long_ago, long_ago))
    options = [*STEPS, f"data.path={place}"]
    launch(*options)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("kleiber.launch.main.last_change", lambda path: path.stat().st_mtime)
        patch.setattr(kleiber.runs.inputs, "present_inputs", lambda config: pytest.fail("compared"))
        launch(*options)
    shutil.copy(REPOSITORY / "tests/data/tiny.txt", place)
    launch(*options)
    assert warnings(capsys) == []
    place.write_text(place.read_text().replace("the", "teh"))
    launch(*options)
    (warning,) = warnings(capsys)
    assert "data/mine was " in warning and "tokenizer" not in warning
    place.write_text("too short")
    launch(*options)
    (warning,) = warnings(capsys)
    assert "mine" in warning


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
