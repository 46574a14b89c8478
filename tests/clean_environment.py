"""Environments of their own: projects installed as wheels, beside the packages that this environment has."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from processes import PATIENCE

HIDDEN = ("PYTHONPATH", "KLEIBER_EXTENSIONS", "KLEIBER_ROOT", "KLEIBER_CACHE", "VIRTUAL_ENV")


class Environment:
    """Wheels of `projects` in a virtual environment at `folder`, which finds all other packages where they are.

    The folder of those packages comes after its own, and the editable installations in it do not count.
    """

    def __init__(self, folder: Path, *projects: Path) -> None:
        self.python = folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        wheels = folder.with_name(f"{folder.name}-wheels")
        for project in projects:
            copy = folder.with_name(f"{folder.name}-source") / project.name
            shutil.copytree(project, copy, ignore=shutil.ignore_patterns(".git", ".venv", "multirun", "__pycache__"))
            run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, copy])
        run([sys.executable, "-m", "venv", "--without-pip", folder])
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run([*pip, "--python", self.python, "install", "--no-deps", "--no-index", *wheels.glob("*.whl")])

    def variables(self, **values: str) -> dict[str, str]:
        """The variables of a process in the environment, in which nothing names the source tree."""
        kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **values}

    def start(self, *words: object, cwd: Path, **values: str) -> subprocess.Popen[str]:
        """Starts a command of the environment in the folder `cwd`."""
        command = [str(self.python.parent / str(words[0])), *map(str, words[1:])]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=self.variables(**values), stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: object, cwd: Path, code: int = 0, **values: str) -> str:
        """Runs a command to its end, which must have this exit code, and returns what it printed."""
        process = self.start(*words, cwd=cwd, **values)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, f"{words}\n{out}\n{err}"
        return out + err


def run(command: list[object]) -> None:
    """Runs a command, whose output the error holds where it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
