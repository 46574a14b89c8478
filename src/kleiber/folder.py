"""The folder of a run: its lock, the files that name it, and what `resume=` makes of one that is there.

Only rank 0 writes. It knows neither models nor data.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from kleiber.errors import ConfigError
from kleiber.identity import identity

TOKENIZER = "tokenizer"  # of the run's own, in its folder

# May differ when resuming from a PATH: how long, who watches, on what.
MAY_DIFFER = ("budget", "logger", "trainer")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second process. The lock dies with its process, so a stale file is harmless."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        if not _lock(file):
            raise ConfigError(f"{folder} is in use by process {holder(folder)}: wait for it, or end it")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str], tries: int = 5) -> bool:
    """Takes the lock; tries again, since `is_locked` of somebody else holds it for an instant."""
    for _ in range(tries):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def holder(folder: Path) -> str:
    """The number of the process that holds the folder."""
    return (folder / ".lock").read_text().strip() or "unknown"


def is_locked(folder: Path) -> bool:
    """Whether a live process holds the folder."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def status(folder: Path, held: bool | None = None) -> str:
    """`missing` without a summary; `running` without a live lock reads as `killed`. `held`: whether it is, if known."""
    try:
        told = json.loads((folder / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return "missing"
    if told != "running":
        return told
    return "running" if (is_locked(folder) if held is None else held) else "killed"


def write_config(folder: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """config.yaml, fully resolved, and overrides.yaml as the user wrote them. Raises ConfigError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("config.yaml", dict(config)), ("overrides.yaml", list(overrides))):
            part = folder / f".{name}.part-{os.getpid()}"
            part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
            part.replace(folder / name)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): set root= or KLEIBER_ROOT") from error


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except OSError:
        raise ConfigError(f"{folder} holds no config.yaml: it is not the folder of a run") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / 'config.yaml'} is damaged: start anew with resume=never")
    return config


def read_overrides(folder: Path) -> list[str]:
    return list(yaml.safe_load((folder / "overrides.yaml").read_text()) or [])


def set_aside(folder: Path) -> None:
    """Moves an old run to `<cell>.1`, or the next number that is free."""
    if not folder.exists():
        return
    with locked(folder):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)


def check_same(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses to go on in `folder` when anything but budget, logger or hardware differs, naming each key."""
    old, new = flat(identity(read_config(folder))), flat(identity(config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    told = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed if key.split(".")[0] not in MAY_DIFFER]
    if told:
        raise ConfigError(f"resume={folder}: the config differs from the one it was started with: {'; '.join(told)}")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        key: value
        for name, sub in node.items()
        for key, value in flat(sub, f"{prefix}{'.' * bool(prefix)}{name}").items()
    }
