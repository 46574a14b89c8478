"""Processes leave out the working folder, and only one module knows how they are started."""

import os
import sys
from pathlib import Path

from kleiber.config.child_process import VARIABLE, python_command, safe_children, without_working_folder

SOURCE = Path(__file__).parents[2] / "src"


def test_no_other_module_starts_python():
    """The module that prints commands for the user names the interpreter too."""
    allowed = {"kleiber/config/child_process.py", "kleiber/records/closing_table.py"}
    names = {str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py") if "sys.executable" in file.read_text()}
    assert names == allowed


def test_a_command_runs_a_module_with_a_safe_path():
    assert python_command("a.b", "c") == [sys.executable, "-P", "-m", "a.b", "c"]


def test_libraries_start_processes_with_a_safe_path_only_within_the_context(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere", str(tmp_path)])
    with safe_children():
        assert os.environ[VARIABLE] == "1" and sys.path == ["/elsewhere"]
    assert VARIABLE not in os.environ and sys.path == ["", "/elsewhere", str(tmp_path)]
    monkeypatch.setenv(VARIABLE, "2")
    with safe_children():
        assert os.environ[VARIABLE] == "1"
    assert os.environ[VARIABLE] == "2"


def test_a_folder_that_the_user_names_in_pythonpath_stays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}{tmp_path}")
    assert without_working_folder(["/elsewhere", str(tmp_path)]) == ["/elsewhere", str(tmp_path)]
