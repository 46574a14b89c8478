"""What a run is called: `<readable>-<hash8>`, the hash over everything in the config that can change its result.

So a repeated command is a resume, a changed config another folder, and a single run the same as the sweep's cell.

The folder of a run: its lock, the files that name it, and what `resume=` makes of one that is there.

Only rank 0 writes. It knows neither models nor data.

The last word on a run that could not write its own: no run that was started is left without a summary.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from kleiber.config.errors import ConfigError
from kleiber.config.signatures import signature
from kleiber.records.summary import Summary, cpu_name

# Where a run lands, who watches it, and on what it is computed. `design` plans a sweep; the cells do not depend on it.
NOT_IDENTITY = (
    "hydra",
    "root",
    "name",
    "study",
    "design",
    "experiment",
    "launcher",
    "logger",
    "trainer.devices",
    "trainer.threads",
    "resume",
    "dry_run",
    "callbacks",
    "evals",
)
READABLE = 60
NAME = re.compile(r"[A-Za-z0-9._-]+")


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that makes the run what it is.

    A null key that means the same when it is left out is not part of it, so a new optional group changes no hash.
    """
    kept = without_nulls(json.loads(json.dumps(config, sort_keys=True)))
    for key in NOT_IDENTITY:
        *parents, last = key.split(".")
        node = kept
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(last, None)
    stability = (config.get("callbacks") or {}).get("stability") or {}
    if "skip" in (stability.get("policy"), stability.get("nonfinite")):  # the one callback that can change the weights
        kept["stability"] = json.loads(json.dumps(stability, sort_keys=True))
    return portable(kept, f"{study_folder(config)}{os.sep}") if "root" in config else kept


def without_nulls(value: Any) -> Any:
    """A config without its null keys, except where a class has another default: there null is a choice."""
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    defaults = _defaults(value)
    return {
        key: without_nulls(entry) for key, entry in value.items() if entry is not None or defaults.get(key) is not None
    }


def _defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    target = str(node.get("_target_", ""))
    if not target.startswith("kleiber."):
        return dict.fromkeys(node, "unknown") if target else {}
    try:
        return {name: parameter.default for name, parameter in signature(target).parameters.items()}
    except ConfigError:  # of a config that somebody else's kleiber wrote
        return dict.fromkeys(node, "unknown")


def portable(value: Any, home: str) -> Any:
    """A config in which paths to runs of its own study, which lies at `home`, are their hashes.

    So a run that starts from another one is the same run wherever the study lies.
    """
    if isinstance(value, dict):
        return {key: portable(entry, home) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry, home) for entry in value]
    if not isinstance(value, str) or not value.startswith(home):
        return value
    run, *rest = value.removeprefix(home).split(os.sep)
    return os.sep.join([run.rsplit("-", 1)[-1], *rest])


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of `identity(config)` as canonical JSON, in hex."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def readable(overrides: Iterable[str], model: str) -> str:
    """The overrides in a few characters: `model=moe model.depth=3 seed=1` reads `moe-depth3-seed1`."""
    words = [model]
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "model" or any(key == name or key.startswith((name + ".", name + "/")) for name in NOT_IDENTITY):
            continue
        last = re.split(r"[./@]", key)[-1]
        words.append(value if re.fullmatch(r"[A-Za-z/_]+", value) and "." not in key else last + value)
    text = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(words)).strip("_.-")
    return text[:READABLE].rstrip("_.-")


def cell_name(config: Mapping[str, Any], overrides: Iterable[str], model: str) -> str:
    return f"{readable(overrides, model)}-{config_hash(config)[:8]}"


def cell_folder(config: Mapping[str, Any], overrides: Iterable[str], model: str) -> Path:
    """`root/name/<cell>`; a folder that ends in the same hash is the same run, however its command was worded."""
    home = study_folder(config)
    existing = sorted(home.glob(f"*-{config_hash(config)[:8]}"))
    return existing[0] if existing else home / cell_name(config, overrides, model)


def study_folder(config: Mapping[str, Any]) -> Path:
    """`root/name`, where `name` is one plain folder name."""
    name = str(config["name"])
    if not NAME.fullmatch(name) or not name.strip("."):
        raise ConfigError(f"name={name}: use letters, digits and . _ - only; root= says where the folder lies")
    if not str(config["root"]).strip():  # which would be the folder one happens to stand in
        raise ConfigError("root= is empty: name a folder, or leave it out for KLEIBER_ROOT or multirun")
    return Path(str(config["root"])).expanduser().absolute() / name


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


def settle(folder: Path, verdict: Literal["failed", "killed", "preempted"], error: str, over: str = "") -> None:
    """Writes status and error, unless the run has written how it ended, and that was not `over`."""
    if status(folder, held=False) not in ("missing", "killed", over):
        return
    summary = Summary(folder)
    if "run_id" not in summary.values:
        summary.start(**facts(folder))
    if summary.values["status"] in ("running", over):
        summary.update(status=verdict, error=error)


def facts(folder: Path) -> dict[str, Any]:
    """What the config alone tells of a run that never came to tell it."""
    config = read_config(folder)
    trainer = config["trainer"]
    return {
        "run_id": os.urandom(6).hex(),
        "name": config["name"],
        "study": config["name"] if config.get("study") else None,
        "config_hash": folder.name.rsplit("-", 1)[-1],
        "overrides": read_overrides(folder),
        "seed": config["seed"],
        "machine": {
            "cpu": cpu_name(),
            "threads": trainer.get("threads") or 1,
            "device": trainer.get("accelerator", "cpu"),
            "world_size": trainer.get("devices", 1),
        },
    }
