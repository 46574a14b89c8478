"""Reads JSON and YAML files that may be damaged or a stranger's, and writes files whole or not at all.

Readers raise `DamagedFile`, which names the file and the reason, for every content that kleiber does not write: another
encoding, other syntax, deep nesting, a huge file, and YAML aliases, a few of which can stand for billions of values.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import json
import math
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import yaml

from kleiber.config.errors import ConfigError
from kleiber.config.system_errors import NO_SPACE
from kleiber.records.locks import sweep_parts
from kleiber.types import Json

T = TypeVar("T")
MAX_JSON_BYTES, MAX_YAML_BYTES = 2**28, 2**20
PROBE_BYTES = 2**20  # written to see whether a disk is full
MAX_DEPTH = 100  # levels of nesting in YAML
OPEN_FILES = 2**16  # more than Linux maps at once, unless vm.max_map_count is raised


class DamagedFile(ConfigError):
    """A file cannot be read, or kleiber does not write such a content. The message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path, self.reason = path, reason


def cache_folder(folder: Path | str | None = None) -> Path:
    """The cache folder: `folder`, else $KLEIBER_CACHE, else $XDG_CACHE_HOME/kleiber, else ~/.cache/kleiber.

    Raises RuntimeError where there is no home folder.
    """
    chosen = folder or os.environ.get("KLEIBER_CACHE")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kleiber")).expanduser()


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, max_bytes: int) -> str:
    """Returns the text of a file. Raises DamagedFile unless it is a file of at most `max_bytes` bytes in UTF-8."""
    try:
        if not path.is_file():
            raise DamagedFile(path, "it is not a file" if path.exists() else "it does not exist")
        size = path.stat().st_size
        if size > max_bytes:
            raise DamagedFile(path, f"it has {size:,} bytes, more than {max_bytes:,}")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise DamagedFile(path, str(error.strerror)) from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Returns the object in a JSON file. Raises DamagedFile where the file is missing or contains no JSON object."""
    return parse_json(read_text(path, max_bytes), path)


def parse_json(text: str, path: Path) -> Json:
    """Returns the object in a JSON text. Raises DamagedFile, which names `path`, where it is no JSON object."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise DamagedFile(path, "its values are nested too deeply") from None
    except ValueError as error:
        raise DamagedFile(path, f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DamagedFile(path, f"it must be a JSON object, not {type(value).__name__}")
    return value


def read_yaml(path: Path) -> object:
    """Returns the value in a YAML file. Raises DamagedFile for aliases, deep nesting and tags of Python objects."""
    text = read_text(path, MAX_YAML_BYTES)
    try:
        _check_events(text, path)
        return yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise DamagedFile(path, f"it is not YAML ({' '.join(str(error).split())})") from None


def read_config_node(path: Path) -> Json:
    """Returns the config in a YAML file that was resolved when it was written.

    Raises DamagedFile as `read_yaml` does, for a file without keys, and for interpolations: one such as
    `${oc.env:HOME}` in a stranger's config would reveal the environment of its reader.
    """
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise DamagedFile(path, "it contains no keys")
    refuse_interpolations(config, path)
    return config


def _check_events(text: str, path: Path) -> None:
    """Raises DamagedFile where a YAML text has an alias or nests too deeply; it builds no value."""
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
            reason = f"levels of nesting, more than {MAX_DEPTH}" if depth > MAX_DEPTH else f"*{event.anchor}, an alias"
            raise DamagedFile(path, f"line {event.start_mark.line + 1} has {reason}")


def refuse_interpolations(value: object, path: Path, key: str = "") -> None:
    """Raises DamagedFile, which names the key, where a text anywhere in `value` contains an interpolation."""
    children: Iterable[tuple[object, object]] = enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        children = value.items()
    for name, child in children:
        refuse_interpolations(child, path, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and "${" in value:
        raise DamagedFile(path, f"{key}={value} is an interpolation, which is not resolved: write the value itself")


def read_lines(path: Path, parse: Callable[[str], T]) -> list[tuple[str, T]]:
    """The lines of a log, without their newlines, each with what `parse` returns for it.

    Leaves out lines for which `parse` raises ValueError, and prints how many they are and which is the first. Leaves
    out the end of the file without a newline, which is what a killed run was writing.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    intact: list[tuple[str, T]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
            intact.append((text, parse(text)))
        except (ValueError, RecursionError):
            damaged.append(number)
    if damaged:
        print(f"warning: {path}: skipped {len(damaged)} damaged lines, first line {damaged[0]}", file=sys.stderr)
    return intact


class _Dumper(yaml.CSafeDumper):
    """Writes a value again where it occurs twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write_yaml(path: Path, value: object) -> None:
    """Writes YAML atomically, without aliases."""
    write_text(path, yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically. Infinite numbers and NaN become null, because JSON cannot represent them."""
    write_text(path, json.dumps(_finite(value), indent=1))


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: another process, or this one after a kill, reads the old text or the new one.

    Removes what processes left that were killed while they wrote it.
    """
    sweep_parts(path.parent.glob(f".{glob.escape(path.name)}.part-*"))
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def rename_aside(path: Path, expected: str = "folder") -> None:
    """Renames what stands where a folder or a file is `expected` to `<name>.1`, or the next free number.

    The target of a link stays as it is.
    """
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    aside = next(candidate for candidate in numbered if not os.path.lexists(candidate))
    os.rename(path, aside)
    print(f"warning: {path} is not a {expected}: renamed it to {aside.name}", file=sys.stderr)


def full_disk_error(folder: Path, error: Exception) -> OSError | None:
    """The error of writing to a full disk, if that is why `error` was raised; None otherwise.

    Libraries such as PyTorch raise errors without the system's number, so a block is written to see it.
    """
    if isinstance(error, OSError):
        return error if error.errno in NO_SPACE else None
    try:
        with open(folder / "probe", "wb") as file:
            file.write(bytes(PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as cause:
        return cause if cause.errno in NO_SPACE else None
    return None


@contextmanager
def many_open_files() -> Iterator[None]:
    """Raises the limit of open files as far as the system allows, for files that are mapped: each of them stays open.

    Raises ValueError where that is not enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise ValueError(
            f"the data has more files than a process may have open, {limit:,}: allow more (`ulimit -n`), or join files"
        ) from error


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
