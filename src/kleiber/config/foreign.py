"""What a config that was read from disk may make kleiber do: nothing that runs code, fetches, or writes elsewhere.

The classes declare such arguments (`kleiber.types.access`). A command permits the values that its own command line
names, in its config or with --data; so do the processes that it starts, because they get its config. A value of any
other config that is not among them is refused by its key. A file, a folder of a size that can be searched, and a name
on the hub need no permission.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kleiber.config.check import constraints
from kleiber.config.errors import ConfigError
from kleiber.config.extensions import declares_access
from kleiber.config.hydra_keys import TARGET
from kleiber.config.permissions import Permission, is_permitted, permit, permit_data
from kleiber.config.stages import STAGE_KEYS, is_chain, stage_configs
from kleiber.config.targets import signature
from kleiber.config.url_secrets import hide_secrets
from kleiber.config.urls import is_pattern, is_url
from kleiber.types import Config
from kleiber.types.access import Access

MOST_FILES = 20_000  # in a folder that is searched without permission
SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")  # files there may have no end, or may never answer


class Unpermitted(ConfigError):
    """A config that was read from disk has a value that only the reader's own command line may set."""


@dataclass(frozen=True)
class Request:
    """A value of a config that needs permission.

    key     of the value, such as data.path
    effect  what kleiber would do with it, as the rest of a sentence
    """

    key: str
    access: Access
    value: str
    effect: str

    def __str__(self) -> str:
        allow = f"add {self.key}={self.value} to it, or {self.key}=null to do without"
        if self.access == Access.READ:
            allow = f"add --data '{self.value}', or allow_data=['{self.value}'] to kleiber train"
        return f"{self.key}={self.value} {self.effect}, which only your own command line can allow: {allow}"

    @property
    def permission(self) -> Permission:
        """What has to be permitted."""
        return self.access, self.value


def permit_config(config: Config) -> None:
    """Permits every value of a config that the reader's command line has composed, and what its `allow_data` names."""
    permit(request.permission for request in requests(config))
    allowed = config.get("allow_data")  # not checked yet: what is no list of names is refused later
    permit_data(name for name in (allowed if isinstance(allowed, list) else ()) if isinstance(name, str))


def check_foreign(config: Config, source: Path, named: Sequence[str] = ()) -> None:
    """Raises Unpermitted for the first value of a config from disk that the command line has not permitted.

    source  file that the config was read from, which the error names
    named   keys that the command line has set in the config
    """
    for request in requests(config):
        is_named = any(request.key == key or request.key.startswith((f"{key}.", f"{key}[")) for key in named)
        if not is_named and not is_permitted(request.permission):
            raise Unpermitted(f"{source}: {request}")


def requests(config: Config) -> list[Request]:
    """Returns the values of a config, or of some keys of it, that need permission. A chain has those of its stages."""
    asked = list(_requests("", {key: value for key, value in config.items() if key != "stages"}, ()))
    for name, stage in (stage_configs(config) if is_chain(config) else {}).items():
        nodes = {key: stage[key] for key in STAGE_KEYS if stage.get(key) != config.get(key)}
        asked += _requests(f"stages.chain.{name}", nodes, ())
    return asked


def _requests(key: str, value: object, declared: Sequence[Access]) -> Iterator[Request]:
    """Yields the requests in a value, at any depth.

    declared  what the class of the argument that has the value declares
    """
    if isinstance(value, Mapping):
        yield from _requests_of_mapping(key, value, declared)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _requests(f"{key}[{number}]", item, declared)
    elif isinstance(value, str):
        for access in declared:
            if effect := effect_of(access, value):
                yield Request(key, access, hide_secrets(value), effect)


def _requests_of_mapping(key: str, node: Config, declared: Sequence[Access]) -> Iterator[Request]:
    target = node.get(TARGET)
    parameters = {} if target is None else signature(str(target)).parameters
    if target is not None and not declares_access(str(target)):
        yield Request(f"{key}.{TARGET}", Access.RUN, str(target), "is a class that may write or connect anywhere")
    for name, value in node.items():
        path = f"{key}.{name}" if key else str(name)
        if target is None:
            yield from _requests(key, str(name), declared)  # the keys of a mapping may be names of data
            yield from _requests(path, value, declared)
        else:
            annotation = parameters[name].annotation if name in parameters else None
            yield from _requests(path, value, [item for item in constraints(annotation) if isinstance(item, Access)])


def effect_of(access: Access, value: str) -> str | None:
    """Returns what kleiber would do with a value, as the rest of a sentence; None where that needs no permission."""
    effects = {Access.RUN: "is code that would be run", Access.WRITE: "is outside of the run and would be written to"}
    return effects.get(access) or effect_of_reading(value)


def effect_of_reading(value: str) -> str | None:
    """Returns what reading a name of data does that needs permission; None for a file, a small folder and the hub."""
    if is_url(value):
        return "would be fetched"
    try:
        place = Path(value).expanduser()
        resolved = place.resolve()
    except (OSError, ValueError, RuntimeError):  # no path can have this name; opening it says so
        return None
    if any(resolved.is_relative_to(folder) for folder in SYSTEM_FOLDERS):
        return "is no ordinary file"
    if not os.path.lexists(place):
        return "would be searched for" if is_pattern(value) else None
    if place.is_dir():
        files = (name for _, _, names in os.walk(place) for name in names)
        has_many = next(islice(files, MOST_FILES, None), None) is not None
        return f"is a folder of more than {MOST_FILES:,} files" if has_many else None
    return None if place.is_file() else "is no ordinary file"
