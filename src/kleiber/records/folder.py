"""The folder of a run: its name, its lock, its config files and its status.

The name is `<readable>-<hash8>`, with a hash over everything in the config that can change the result. So a repeated
command resumes, a changed config gets another folder, and a single run equals the sweep's cell. Only rank 0 writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from kleiber.config.errors import ConfigError, Status
from kleiber.config.signatures import signature
from kleiber.records.summary import Summary, cpu_name, read
from kleiber.types import Config, Json

# Keys that say where a run is written, what watches it, and on which hardware it is computed. `design` plans a sweep.
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


def identity(config: Config) -> Json:
    """The part of a resolved config that determines the run's result.

    It leaves out a key that is null and means the same when absent, so a new optional group changes no hash.
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
    """A config without its null keys, except where the default of the class is not null: there null is a choice."""
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    defaults = _defaults(value)
    return {
        key: without_nulls(entry) for key, entry in value.items() if entry is not None or defaults.get(key) is not None
    }


def _defaults(node: Config) -> Json:
    target = str(node.get("_target_", ""))
    if not target.startswith("kleiber."):
        return dict.fromkeys(node, "unknown") if target else {}
    try:
        return {name: parameter.default for name, parameter in signature(target).parameters.items()}
    except ConfigError:  # a config that another version of kleiber wrote
        return dict.fromkeys(node, "unknown")


def portable(value: Any, home: str) -> Any:
    """A config in which the hashes of runs replace the paths to them, where they lie in the study's folder `home`.

    So a run that starts from another run of its study keeps its hash when the study is moved.
    """
    if isinstance(value, dict):
        return {key: portable(entry, home) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry, home) for entry in value]
    if not isinstance(value, str) or not value.startswith(home):
        return value
    run, *rest = value.removeprefix(home).split(os.sep)
    return os.sep.join([run.rsplit("-", 1)[-1], *rest])


def config_hash(config: Config) -> str:
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


def cell_name(config: Config, overrides: Iterable[str], model: str) -> str:
    return f"{readable(overrides, model)}-{config_hash(config)[:8]}"


def cell_folder(config: Config, overrides: Iterable[str], model: str) -> Path:
    """`root/name/<cell>`, or the folder there that ends in the same hash."""
    home = study_folder(config)
    existing = sorted(home.glob(f"*-{config_hash(config)[:8]}"))
    return existing[0] if existing else home / cell_name(config, overrides, model)


def study_folder(config: Config) -> Path:
    """`root/name`. Raises ConfigError unless `name` is a plain folder name and `root` is not empty."""
    name = str(config["name"])
    if not NAME.fullmatch(name) or not name.strip("."):
        raise ConfigError(f"name={name} may hold letters, digits and . _ - only; root= sets the parent folder")
    if not str(config["root"]).strip():  # an empty path would be the current folder
        raise ConfigError("root= is empty: name a folder, or leave it out for KLEIBER_ROOT or multirun")
    return Path(str(config["root"])).expanduser().absolute() / name


TOKENIZER = "tokenizer"  # folder of the tokenizer that was trained for the run, inside the run's folder

# Keys that may differ when resuming from a PATH: duration, loggers, hardware.
MAY_DIFFER = ("budget", "logger", "trainer")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder against other processes. The lock ends with its process, so a stale file is harmless."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        if not _lock(file):
            raise ConfigError(f"{folder} is in use by process {holder(folder)}: wait for that process, or end it")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str], tries: int = 5) -> bool:
    """Takes the lock; tries again, because `is_locked` of another process holds it for an instant."""
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


def status(folder: Path, held: bool | None = None) -> Status:
    """The status of the run in a folder: missing without a readable summary, killed where `running` holds no lock.

    held  whether a live process holds the lock; None looks it up
    """
    try:
        recorded = Status((read(folder / "summary.json") or {})["status"])
    except (ValueError, KeyError, TypeError):
        return Status.MISSING
    if recorded != Status.RUNNING:
        return recorded
    return Status.RUNNING if (is_locked(folder) if held is None else held) else Status.KILLED


def write_config(folder: Path, config: Config, overrides: Sequence[str]) -> None:
    """Writes config.yaml, fully resolved, and overrides.yaml as the user wrote them.

    Raises ConfigError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("config.yaml", dict(config)), ("overrides.yaml", list(overrides))):
            part = folder / f".{name}.part-{os.getpid()}"
            part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
            part.replace(folder / name)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): set root= or KLEIBER_ROOT") from error


def read_config(folder: Path) -> Json:
    """The content of config.yaml. Raises ConfigError where there is none or it is damaged."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except OSError:
        raise ConfigError(f"{folder} holds no config.yaml, so it is not the folder of a run") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{folder / 'config.yaml'} is damaged: start again with resume=never")
    return config


def read_overrides(folder: Path) -> list[str]:
    return list(yaml.safe_load((folder / "overrides.yaml").read_text()) or [])


def set_aside(folder: Path) -> None:
    """Renames the folder of an old run to `<cell>.1`, or the next free number."""
    if not folder.exists():
        return
    with locked(folder):
        number = 1
        while folder.with_name(f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(folder.with_name(f"{folder.name}.{number}"))


def check_same(folder: Path, config: Config) -> None:
    """Raises ConfigError, naming each key, where `config` differs from that of `folder` in more than MAY_DIFFER."""
    old, new = flat(identity(read_config(folder))), flat(identity(config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    differences = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed if key.split(".")[0] not in MAY_DIFFER]
    if differences:
        raise ConfigError(f"resume={folder} was started with another config: {'; '.join(differences)}")


def flat(node: object, prefix: str = "") -> Json:
    """The leaves of a config by dotted key."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        key: value
        for name, sub in node.items()
        for key, value in flat(sub, f"{prefix}{'.' * bool(prefix)}{name}").items()
    }


def settle(folder: Path, final: Status, error: str, over: Status | None = None) -> None:
    """Writes the final status and error of a run whose process ended before it wrote them.

    Leaves a run alone that has written how it ended, unless with the status `over`.
    """
    if status(folder, held=False) not in (Status.MISSING, Status.KILLED, over):
        return
    summary = Summary(folder)
    if "run_id" not in summary.values:
        summary.start(**facts(folder))
    if summary.values["status"] in (Status.RUNNING, over):
        summary.update(status=final, error=error)


def facts(folder: Path) -> Json:
    """The entries of summary.json that follow from the config, for a run that ended before it wrote any."""
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
