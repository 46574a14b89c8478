"""What a run is called: `<readable>-<hash8>`, the hash over everything in the config that can change its result.

So a repeated command is a resume, a changed config another folder, and a single run the same as the sweep's cell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kleiber.errors import ConfigError

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
)
READABLE = 60
NAME = re.compile(r"[A-Za-z0-9._-]+")


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that makes the run what it is."""
    kept = json.loads(json.dumps(config, sort_keys=True))
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
