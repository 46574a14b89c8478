"""Looking at other processes: waiting for what they do, and whether any is left."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 600  # seconds after which a process hangs: far more than a busy machine takes, because no test is about time


def wait_for(what: Callable[[], Any]) -> Any:
    """What `what` returns once that is true; fails after PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE} s")


def alive(root: Path) -> dict[int, str]:
    """Command lines, by number, of the processes that name a folder or a part of it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(root) in line and int(path.name) != os.getpid():
            found[int(path.name)] = line
    return found


def rank_of(pid: int) -> str | None:
    """The rank that a process was started as."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((text[5:].decode() for text in variables if text.startswith(b"RANK=")), None)
