"""Python processes that kleiber or a library starts: the working folder is not on their module path.

Python puts the working folder in front of all others for `python -m` and `python -c`, so a file `queue.py` in a folder
that somebody sent would replace the module of the standard library. Every module of kleiber that starts a process of
Python does so with the functions here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

VARIABLE = "PYTHONSAFEPATH"  # has the effect of -P in a process, and in those that it starts
SAFE = {VARIABLE: "1"}


def python_command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module in another process of this interpreter.

    The processes that it starts in turn are safe too if its environment is `safe_environment`.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def safe_environment() -> dict[str, str]:
    """Returns the environment of this process with the variable by which Python leaves out the working folder."""
    return {**os.environ, **SAFE}


@contextmanager
def safe_children() -> Iterator[None]:
    """Context in which processes that a library starts, such as the fork server, leave out the working folder.

    `multiprocessing` hands them the module path of this process, which contains that folder in a notebook and where
    KLEIBER_EXTENSIONS is set; they add it at the end themselves if they build a class of an extension.
    """
    variable, path = os.environ.get(VARIABLE), sys.path[:]
    os.environ |= SAFE
    sys.path[:] = without_working_folder(path)
    try:
        yield
    finally:
        sys.path[:] = path
        if variable is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = variable


def without_working_folder(path: Sequence[str]) -> list[str]:
    """Returns a module path without the working folder, unless the user's PYTHONPATH names that."""
    here = os.getcwd()
    asked = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return [entry for entry in path if here in asked or entry not in ("", here)]
