"""Reads JSON and YAML files that may be damaged or a stranger's, and writes files whole or not at all.

Readers raise `DamagedFile`, which names the file and the reason, for every content that kleiber does not write: another
encoding, other syntax, deep nesting, a huge file, and YAML aliases, a few of which can stand for billions of values.
"""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import resource
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import yaml

from kleiber.config.system_errors import NO_SPACE
from kleiber.records.locks import sweep_parts
from kleiber.records.regular_files import DamagedFile, create, kind_of, open_to_read, read_text, remove, rename_aside
from kleiber.types import Json

T = TypeVar("T")
MAX_JSON_BYTES, MAX_YAML_BYTES = 2**28, 2**20
MAX_VALUES = 2**22  # in a JSON text; each takes 100 bytes of memory, or more
WORD_DIGITS, MAX_DIGITS = 20, 40  # of a whole number in JSON, with its sign; one of more than 64 bits fails in numpy
PROBE_BYTES = 2**20  # written to see whether a disk is full
WORD_BITS = 64
LONGEST = 200  # characters of a value in an error
MAX_DEPTH = 100  # levels of nesting in YAML
OPEN_FILES = 2**16  # more than Linux maps at once, unless vm.max_map_count is raised


def cache_folder(folder: Path | str | None = None) -> Path:
    """The cache folder: `folder`, else $KLEIBER_CACHE, else $XDG_CACHE_HOME/kleiber, else ~/.cache/kleiber.

    Raises RuntimeError where there is no home folder.
    """
    chosen = folder or os.environ.get("KLEIBER_CACHE")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kleiber")).expanduser()


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Returns the object in a JSON file. Raises DamagedFile where the file is missing or contains no JSON object."""
    return parse_json(read_text(path, max_bytes), path)


def parse_json(text: str, path: Path, max_values: int | None = MAX_VALUES) -> Json:
    """Returns the object in a JSON text. Raises DamagedFile, which names `path`, where it is no JSON object.

    max_values  as in `load_json`
    """
    try:
        value = load_json(text, max_values)
    except RecursionError:
        raise DamagedFile(path, "its values are nested too deeply") from None
    except ValueError as error:
        raise DamagedFile(path, f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DamagedFile(path, f"it must be a JSON object, not {type(value).__name__}")
    return value


def load_json(text: str, max_values: int | None = MAX_VALUES) -> object:
    """Returns the value of a JSON text of bounded size in memory.

    max_values  most numbers, texts, lists and objects in it; None where the caller has counted them

    Raises ValueError for other text, for more values, and for a whole number of more than MAX_DIGITS digits (one
    of more than WORD_DIGITS, as transformers writes for an unlimited length, is returned as a float);
    RecursionError for deep nesting.
    """
    number = 0 if max_values is None else text.count(",") + text.count("[") + text.count("{")
    if max_values is not None and number > max_values:
        raise ValueError(f"it has {number:,} values, more than {max_values:,}")
    value = json.loads(text, parse_int=_parse_int)
    return _without_surrogates(value) if "\\ud" in text or "\\uD" in text else value


def _without_surrogates(value: object) -> object:
    """Replaces halves of characters, which JSON can have as escapes, and no file or page can."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(child) for key, child in value.items()}
    return [_without_surrogates(child) for child in value] if isinstance(value, list) else value


def _parse_int(digits: str) -> float:
    if len(digits) > MAX_DIGITS:  # with its sign
        raise ValueError(f"{digits[:MAX_DIGITS]}... has {len(digits):,} digits")
    return int(digits) if len(digits) <= WORD_DIGITS else float(digits)


def read_yaml(path: Path) -> object:
    """Returns the value in a YAML file. Raises DamagedFile for aliases, deep nesting, tags and a second document.

    It builds the value from the events of the C parser, because `yaml.load` takes twice as long and allows aliases.
    """
    events = _checked_events(read_text(path, MAX_YAML_BYTES), path)
    try:
        values = [_yaml_value(first, events) for first in events]
        return values[0] if values else None
    except DamagedFile:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as error:  # an impossible date or number; a list as a key
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


def _yaml_value(first: yaml.Event, events: Iterator[yaml.Event]) -> object:
    """The value whose events are `first` and the next of `events`."""
    if isinstance(first, yaml.ScalarEvent):
        is_plain = first.implicit[0]
        return _plain_value(first.value) if is_plain else first.value
    children = takewhile(lambda event: not isinstance(event, yaml.CollectionEndEvent), events)
    if isinstance(first, yaml.MappingStartEvent):
        return {_yaml_value(key, events): _yaml_value(next(events), events) for key in children}
    return [_yaml_value(child, events) for child in children]


@lru_cache(maxsize=4096)
def _plain_value(text: str) -> object:
    """The number, date, truth value, null or text that a text without quotes is in YAML."""
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text))


def _checked_events(text: str, path: Path) -> Iterator[yaml.Event]:
    """The events of the value of a YAML text. Raises DamagedFile for what kleiber writes into no file."""
    depth = documents = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        reason = None
        if depth > MAX_DEPTH:
            reason = f"levels of nesting, more than {MAX_DEPTH}"
        elif isinstance(event, yaml.AliasEvent):
            reason = f"*{event.anchor}, an alias"
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            reason = f"{event.tag}, a tag"
        elif documents > 1:
            reason = "a second document"
        if reason is not None:
            raise DamagedFile(path, f"line {event.start_mark.line + 1} has {reason}")
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def refuse_interpolations(value: object, path: Path, key: str = "") -> None:
    """Raises DamagedFile, which names the key, where a text anywhere in `value` contains an interpolation.

    Also for a whole number that does not fit into 64 bits, which no key takes and which could fill the memory.
    """
    children: Iterable[tuple[object, object]] = enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        children = value.items()
    for name, child in children:
        refuse_interpolations(child, path, f"{key}.{name}" if key else str(name))
    if isinstance(value, str) and "${" in value:
        reason = "is an interpolation, which is not resolved: write the value itself"
        raise DamagedFile(path, f"{key}={value[:LONGEST]} {reason}")
    if isinstance(value, int) and value.bit_length() > WORD_BITS:
        raise DamagedFile(path, f"{key} is a whole number of {value.bit_length():,} bits, more than {WORD_BITS}")


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
    """Writes a text whole or not at all; see `replaced`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; see `replaced`."""
    with replaced(path) as part, create(part) as file:
        file.write(content)


def copy_file(source: Path, target: Path) -> None:
    """Writes the content of a file to `target` whole or not at all, with the permissions of any new file."""
    with open_to_read(source) as original, replaced(target) as part, create(part) as copy:
        shutil.copyfileobj(original, copy)


@contextmanager
def replaced(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yields the path of a new file, which takes the place of `path` on exit, unless an error is raised.

    So another process, or this one after a kill, reads the old file or the new one. A link at `path` is renamed, and
    its target stays as it is. Removes what processes left that were killed while they wrote the file.

    shared  whether ranks on several machines, whose processes may have equal ids, write the file at the same time

    Raises DamagedFile where a folder, a pipe or a device is at `path`.
    """
    if not shared:
        sweep_parts(path.parent.glob(f".{glob.escape(path.name)}.part-*"))
    kind = kind_of(path)
    if kind is not None and not path.is_symlink():
        raise DamagedFile(path, f"it is {kind}, not a file: rename or remove it")
    if kind is not None:
        rename_aside(path, "file")
    part = path.with_name(f".{path.name}-{secrets.token_hex(8)}" if shared else f".{path.name}.part-{os.getpid()}")
    remove(part)
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(part):
            error.filename = str(path)
        remove(part)
        raise


def full_disk_error(folder: Path, error: Exception) -> OSError | None:
    """The error of writing to a full disk, if that is why `error` was raised; None otherwise.

    Libraries such as PyTorch raise errors without the system's number, so a block is written to see it.
    """
    if isinstance(error, OSError):
        return error if error.errno in NO_SPACE else None
    try:
        with create(folder / "probe") as file:
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
