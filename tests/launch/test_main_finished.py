"""A finished run says whether its inputs changed after it started, and compares them only where a file was touched."""

import os
import shutil
import time

import pytest
from small_run import REPOSITORY

import kleiber.runs.inputs

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
        patch.setattr("kleiber.runs.input_changes.last_change", lambda path: path.stat().st_mtime)
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
