"""Kills that hit where they are aimed: a child forked from the test (torch is imported already) kills itself there.

And the folder of a run that a stranger has changed.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import SHAPE, TINY

import kleiber.runs.stage  # noqa: F401 (before the fork, so that a child has its imports at once)


@pytest.fixture
def child(tmp_path: Path, cache_dir: Path) -> Callable[..., int]:
    """Runs a tiny training in a forked child; returns its exit code, or minus the signal that ended it.

    `at=(target, n)` makes the n-th call of `target` ("module.function") a SIGKILL.
    """

    def run(*overrides: str, root: str, at: tuple[str, int] | None = None) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                if at is not None:
                    aim(*at)
                from kleiber.launch.main import main

                os._exit(main([*TINY, f"root={tmp_path / root}", *overrides]))
            finally:
                os._exit(99)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run


def aim(target: str, number: int) -> None:
    import importlib

    module, name = target.rsplit(".", 1)
    owner = importlib.import_module(module)
    original, calls = getattr(owner, name), []

    def deadly(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, deadly)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run; tests change copies of it."""
    from kleiber.launch.main import main as train

    root = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIBER_CACHE", str(tmp_path_factory.getbasetemp() / "token-cache"))
        assert train([*TINY, *SHAPE, f"root={root}", "name=study"]) == 0
    (folder,) = (root / "study").glob("*-*")
    return folder


@pytest.fixture
def foreign(trained: Path, tmp_path: Path, cache_dir: Path) -> Callable[[str, object], Path]:
    """Returns a function that copies the run and changes its config at a dotted key; it returns the folder."""

    def change(key: str, value: object) -> Path:
        folder = tmp_path / "foreign" / trained.name
        shutil.copytree(trained, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node[parent] = node.get(parent) or {}
            node = node[parent]
        node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return change
