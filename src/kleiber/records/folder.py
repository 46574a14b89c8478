"""The folder of a run: its name, its config files and its status.

The name is `<readable>-<hash8>`, with a hash over all of the config that can change the result: a repeated command
resumes its run, a changed config gets another folder, and a cell of a sweep has the folder of the single run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from kleiber.config.errors import ConfigError, Status
from kleiber.config.nested import map_strings
from kleiber.config.targets import signature
from kleiber.config.url_secrets import hide_secrets, map_secrets
from kleiber.records.environment import cpu_name
from kleiber.records.files import read_config_node, read_yaml, write_yaml
from kleiber.records.locks import is_locked, locked, stays_locked
from kleiber.records.regular_files import DamagedFile, make_folder, rename_aside
from kleiber.records.summary import Summary
from kleiber.records.summary_file import read_summary
from kleiber.types import Config, Json

SAME_AS_NULL = (("separator", "auto"),)  # key and value of a config, at any depth
# Keys that cannot change the result: where a run is written, what logs it, and the hardware. `design` plans a sweep.
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
    "trainer.rank_timeout",
    "resume",
    "dry_run",
    "callbacks",
    "evals",
    "eval.every_tokens",
    "cost",
    "allow_data",
)
OUTPUTS = ("config.yaml", "overrides.yaml", "summary.json", "log.txt", "metrics.jsonl", "metrics.csv", "samples.txt")
# Entries of the folder of a run before its first step.
UNSTARTED = {"config.yaml", "overrides.yaml", "summary.json", "log.txt", ".lock", "wandb", "tensorboard", "ranks"}
OURS = ("kleiber.", "kleiber_topics.")  # packages whose defaults are those of this version
LONG = 16  # characters of a part of a name
READABLE = 60
ARM = "study.arm"
OTHER_TOKENS = {"batch.tokens": "batch", "eval.tokens": "eval"}  # in names, where `tokens` is that of the budget
KIND_GROUPS = ("model/router", "objective", "retention", "adapter", "privacy")  # choices that say what a run is
FOLDER_NAME = re.compile(r"[A-Za-z0-9._-]+")
NAMED_BY_HASH = re.compile(r".*-([0-9a-f]{8}(?:\.\d+)?)")  # folder of a run; `.1` is that of one that was set aside


def identity(config: Config) -> Json:
    """The part of a resolved config that determines the run's result.

    It leaves out a key that is null and means the same when absent, so a new optional group changes no hash.
    """
    part = without_nulls(json.loads(json.dumps(config)))
    for key in NOT_IDENTITY:
        *parents, last = key.split(".")
        node = part
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(last, None)
    init = part.get("init")
    if isinstance(init, dict) and init.get("_target_") == "kleiber.runs.Scratch":  # equals no init
        del part["init"]
    part |= identity_of_callbacks(config)
    return with_hashes_for_paths(part, f"{study_folder(config)}{os.sep}") if "root" in config else part


def identity_of_callbacks(config: Config) -> Json:
    """The nodes of callbacks that can change the weights: `stability`, where it does more than print."""
    callbacks = config.get("callbacks") or {}
    stability = callbacks.get("stability") or {}
    if stability.get("policy") not in ("skip", "rollback", "halt") and stability.get("nonfinite") != "skip":
        return {}
    part: Json = {"stability": json.loads(json.dumps(stability, sort_keys=True))}
    if stability.get("policy") == "rollback":  # which depends on when checkpoints are saved
        part["checkpoints"] = {"every": (callbacks.get("checkpoints") or {}).get("every")}
    return part


def without_nulls(config: Config) -> Json:
    """A config without its null keys, except where the default of the class is not null: there null is a choice.

    A key whose value means the same as null is left out too.
    """
    defaults = _defaults(config)
    kept = {key: value for key, value in config.items() if value is not None or defaults.get(key) is not None}
    kept = {key: value for key, value in kept.items() if (key, value) not in SAME_AS_NULL}
    return {key: _without_nulls(value) for key, value in kept.items()}


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return without_nulls(value)
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _defaults(node: Config) -> Json:
    """The defaults of the class that a node builds; "unknown" for each key where the class is not known."""
    target = str(node.get("_target_", ""))
    if not target.startswith(OURS):
        return dict.fromkeys(node, "unknown") if target else {}
    try:
        return {name: parameter.default for name, parameter in signature(target).parameters.items()}
    except ConfigError:  # a config that another version of kleiber wrote
        return dict.fromkeys(node, "unknown")


def with_hashes_for_paths(config: Config, home: str) -> Json:
    """A config in which the hashes of runs replace the paths to them, if the runs are in the study's folder `home`.

    So a run that starts from another run of its study keeps its hash when the study is moved. The folder of a run that
    was renamed has no hash in its name, so its whole name stays.
    """

    def replace(text: str) -> str:
        """Returns a path into the study with the hash of its run in place of the name; other text as it is."""
        if not text.startswith(home):
            return text
        run, *rest = text.removeprefix(home).split(os.sep)
        named = NAMED_BY_HASH.fullmatch(run)
        return os.sep.join([named[1] if named else run, *rest])

    return map_strings(config, replace)


def config_hash(config: Config) -> str:
    """sha256 of `identity(config)` as canonical JSON, in hex."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def readable_name(overrides: Iterable[str], model: str, differing: Collection[str] | None = None) -> str:
    """The overrides in a few characters: `moe-depth3-seed1` for `model=moe model.depth=3 seed=1`.

    model      kind of the run, see `kleiber.config.compose.resolve_config`
    differing  keys that tell the cells of a sweep apart: a cell is named by its arm, by these, and by the groups of
               KIND_GROUPS; None for a single run, which has the names of all keys but those of text in quotes
    """
    words = model.split("-")[: 1 if differing is None else None]
    stages: list[str] = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if differing is not None and key == ARM:
            words.insert(1, value)
            continue
        if key == "model" or any(key == name or key.startswith((name + ".", name + "/")) for name in NOT_IDENTITY):
            continue
        if differing is not None and (value == "null" or key not in {*differing, *KIND_GROUPS}):
            continue
        if differing is None and value.startswith(("'", '"')):  # text, such as a template
            continue
        if value.count("{") > 1:  # of a chain of stages or the like: what it has is too long for a name
            stages += outer_keys(value)
            continue
        last = OTHER_TOKENS.get(key) or re.split(r"[./@]", key)[-1]
        named = Path(value).name if last == "path" else last + value
        words.append(value if re.fullmatch(r"[A-Za-z/_]+", value) and "." not in key else named)
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in dict.fromkeys([*words, *stages])]
    if len("-".join(parts)) > READABLE:  # what is cut off should be long: a seed or a rate tells more in less
        parts[1:] = sorted(parts[1:], key=lambda part: len(part) > LONG)
    return "-".join(parts).strip("_.-")[:READABLE].rstrip("_.-")


def outer_keys(value: str) -> list[str]:
    """Returns the keys of a mapping of mappings as an override has it: docs and code of `{docs:{...},code:{...}}`."""
    text, inner = value[1:-1], re.compile(r"\{[^{}]*\}")
    while inner.search(text):
        text = inner.sub("", text)
    return re.findall(r"([\w-]+):", text)


def differing_keys(cells: Sequence[Sequence[str]]) -> set[str] | None:
    """Returns the keys in which the overrides of cells differ, as `readable_name` takes them; None for a single cell.

    Keys that have one value in each arm are left out, since its name stands for them, and where a run starts from.
    """
    values: list[dict[str, str]] = []
    for cell in cells:
        parts = [line.lstrip("+~").partition("=") for line in cell]
        values.append({key: value for key, _, value in parts})
    by_arm: dict[str | None, list[dict[str, str]]] = {}
    for lines in values:
        by_arm.setdefault(lines.get(ARM), []).append(lines)
    keys = {key for lines in values for key in lines} - {"init", "init.path"}
    groups = [*by_arm.values()] if len(by_arm) > 1 else [values]
    apart = (key for key in keys for group in groups if len({lines.get(key) for lines in group}) > 1)
    return set(apart) if len(cells) > 1 else None


def cell_name(config: Config, overrides: Iterable[str], model: str, differing: Collection[str] | None = None) -> str:
    """Name of a run's folder: `<readable>-<hash8>`; `differing` as in `readable_name`."""
    return f"{readable_name(overrides, model, differing)}-{config_hash(config)[:8]}"


def cell_folder(config: Config, overrides: Iterable[str], model: str, differing: Collection[str] | None = None) -> Path:
    """`root/name/<cell>`, or the folder there that ends in the same hash; `differing` as in `readable_name`."""
    home, new = study_folder(config), cell_name(config, overrides, model, differing)
    ending = new[new.rindex("-") :]
    names = os.listdir(home) if home.is_dir() else []
    return home / min((name for name in names if name.endswith(ending)), default=new)


def study_folder(config: Config) -> Path:
    """`root/name`. Raises ConfigError unless `name` is a plain folder name and `root` is not empty."""
    name = str(config["name"])
    if not FOLDER_NAME.fullmatch(name) or not name.strip("."):
        raise ConfigError(f"name={name} may contain only a-z, A-Z, 0-9 and . _ -; root= sets the parent folder")
    if not str(config["root"]).strip():  # an empty path would be the current folder
        raise ConfigError("root= is empty: set a folder, or remove it to use KLEIBER_ROOT or multirun")
    return Path(str(config["root"])).expanduser().absolute() / name


TOKENIZER = "tokenizer"  # folder of the tokenizer that was trained for the run, inside the run's folder


def status(folder: Path, held: bool | None = None) -> Status:
    """The status of a run: killed where its summary says running, or it has begun without one, and no process is alive.

    held  whether a live process holds the lock; None to look it up
    """
    try:
        summary = read_summary(folder) or {}
    except DamagedFile:
        summary = {}
    return status_of(summary, folder, held)


def status_of(summary: Json, folder: Path, held: bool | None = None) -> Status:
    """As `status`, of a summary that has been read; {} where there is none."""
    begun = not summary and any((folder / name).exists() for name in ("stages", "metrics.jsonl"))
    recorded = Status(summary.get("status", Status.RUNNING if begun else Status.MISSING))
    if recorded != Status.RUNNING:
        return recorded
    return Status.RUNNING if (is_locked(folder) if held is None else held) else Status.KILLED


def write_config(folder: Path, config: Config, overrides: Sequence[str]) -> None:
    """Writes config.yaml, resolved, and overrides.yaml; raises ConfigError where the folder cannot be written.

    Renames folders and links that stand where the run will write a file, so that nothing outside of it is changed.
    """
    try:
        make_folder(folder)
        for path in (folder / name for name in OUTPUTS):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                rename_aside(path, "file")
        write_yaml(folder / "config.yaml", map_secrets(dict(config), hide_secrets))
        write_yaml(folder / "overrides.yaml", map_secrets(list(overrides), hide_secrets))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): set root= or KLEIBER_ROOT") from error


def read_config(folder: Path) -> Json:
    """The content of config.yaml. Raises ConfigError where there is none or it is damaged."""
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{folder} has no config.yaml, so it is not the folder of a run")
    return read_config_node(path)


def read_overrides(folder: Path) -> list[str]:
    """Returns the overrides of the run, such as `model.depth=3`, from its overrides.yaml."""
    overrides = read_yaml(folder / "overrides.yaml") or []
    if not isinstance(overrides, list):
        raise DamagedFile(folder / "overrides.yaml", "it must be a list of overrides")
    return [str(override) for override in overrides]


def set_aside(folder: Path) -> None:
    """Renames the folder of an old run to `<cell>.1`, or the next free number."""
    if not folder.exists():
        return
    with locked(folder):
        number = 1
        while folder.with_name(f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(folder.with_name(f"{folder.name}.{number}"))


def discard_unstarted(folder: Path) -> None:
    """Removes the folder of a run that was refused before its first step, with the empty folders above it.

    Does nothing where there are other files, or where a live process holds the lock: another sweep may prepare the same
    run. The folders above are those of `name` and `root`.
    """
    if folder.is_dir() and not is_locked(folder) and {path.name for path in folder.iterdir()} <= UNSTARTED:
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def write_final_status(
    folder: Path, final: Status, error: str, replaceable: Collection[Status] = (), holds_lock: bool = False
) -> None:
    """Writes the final status and error of a run whose process ended before it wrote them.

    Changes nothing where the run has a final status, unless that is among `replaceable`, and where another process that
    is alive holds the lock: then the process that ended was refused, and the run is that of the other one.

    holds_lock  whether this process holds the lock of the run
    """
    if not holds_lock and stays_locked(folder):
        return
    if status(folder, held=False) not in (Status.MISSING, Status.KILLED, *replaceable):
        return
    if not (folder / "config.yaml").is_file():  # the folder was deleted while the run trained
        return
    summary = Summary(folder)
    if "run_id" not in summary.values:
        summary.start(**summary_facts(folder))
    if summary.values["status"] in (Status.RUNNING, *replaceable):
        summary.update(status=final, error=error)


def summary_facts(folder: Path) -> Json:
    """The entries of summary.json that follow from the config, for a run that ended before it wrote any."""
    config = read_config(folder)
    trainer = config["trainer"]
    return {
        "run_id": os.urandom(6).hex(),
        "name": config["name"],
        "study": config["name"] if config.get("study") else None,
        "config_hash": config_hash(config)[:8],
        "overrides": read_overrides(folder),
        "seed": config["seed"],
        "machine": {
            "cpu": cpu_name(),
            "threads": trainer.get("threads") or 1,
            "device": trainer.get("accelerator", "cpu"),
            "world_size": trainer.get("devices", 1),
        },
    }
