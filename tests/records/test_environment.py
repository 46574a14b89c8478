"""The processor, the versions of packages and the commit of the code, as a run records them."""

import platform
import subprocess
from pathlib import Path

import pytest

from kleiber.records import environment
from kleiber.records.environment import commit, cpu_name, versions


@pytest.fixture(autouse=True)
def uncached():
    for fact in (commit, cpu_name, versions):
        fact.cache_clear()
    yield
    for fact in (commit, cpu_name, versions):
        fact.cache_clear()


def test_versions_are_of_python_and_of_installed_packages(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "not-a-package"))
    assert versions().keys() == {"python", "numpy"} and versions()["python"] == platform.python_version()


@pytest.mark.parametrize(
    ("described", "code", "expected"),
    [("abc123\n", 0, ("abc123", False)), ("abc123-dirty\n", 0, ("abc123", True)), ("", 128, (None, None))],
)
def test_a_commit_is_named_with_whether_the_code_differs_from_it(monkeypatch, tmp_path, described, code, expected):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "src" / "kleiber" / "records" / "environment.py"))
    ended = subprocess.CompletedProcess([], code, described, "")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: ended)
    assert (commit()["commit"], commit()["dirty"]) == expected


def test_an_installed_package_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "lib" / "kleiber" / "records" / "environment.py"))
    assert commit() == {"commit": None, "dirty": None}


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [("processor\t: 0\nmodel name\t: Fast: 9 GHz\nmodel name\t: other\n", "Fast: 9 GHz"), ("", "riscv64")],
)
def test_a_processor_without_a_model_name_is_named_by_its_architecture(monkeypatch, cpuinfo, name):
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    monkeypatch.setattr(environment.platform, "processor", str)
    monkeypatch.setattr(environment.platform, "machine", lambda: "riscv64")
    assert cpu_name() == name
