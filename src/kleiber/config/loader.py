"""Hydra's config loader, which reads every file and merges every set of choices only once.

Hydra reads, parses and merges some twenty files for a config, which takes 200 ms. Most cells of a sweep choose the same
files and set other values, so merged files are kept, pickled, and copied for each cell, which takes 3 ms. Configs equal
those of Hydra's own loader.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from kleiber.config.errors import ConfigError

# Providers of the folders that all commands of this process share; those of a user may hold very many files.
SHARED_PROVIDERS = ("main", "extension", "hydra", "schema")
KEY = re.compile(r"[+~]{0,2}[A-Za-z_][A-Za-z0-9_./@-]*")
# A text in quotes, whose line breaks are its own, or a line break between the parts of a list or mapping.
LINE_BREAK = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\s*\n\s*""")
STRUCTURE = re.compile(r"[^=]*=\s*[\[{]")  # an override whose value is a list or a mapping
NOT_ONE_TEXT = frozenset("'\"\\`,[]{}$")  # signs of lists, sweeps, quotes and interpolations
LIMIT = 512  # sets of choices whose merged files are kept, of about 30 kB each
PLACES = 4  # search paths whose files are kept: with the packages of the reader and without them


@dataclass
class Memory:
    """What has been read from the folders of a search path while their files are as they are.

    files    pickled configs by the path of the file, without the folder and the suffix
    groups   whether there is a group of a name
    merged   pickled merged configs by root config, mode and choices
    choices  choices of each group, by root config
    """

    files: dict[str, bytes] = field(default_factory=dict)
    groups: dict[str, bool] = field(default_factory=dict)
    merged: dict[tuple[object, ...], bytes] = field(default_factory=dict)
    choices: dict[str, dict[str, list[str]]] = field(default_factory=dict)


MEMORIES: dict[tuple[object, ...], Memory] = {}


def memory_of(sources: Sequence[ConfigSource]) -> Memory:
    """Returns what this process has read from these sources; a new memory if a file has changed since then."""
    if any(source.provider not in SHARED_PROVIDERS for source in sources):
        return Memory()
    state = tuple((source.scheme(), source.path, files_of(source)) for source in sources)
    if state not in MEMORIES and len(MEMORIES) >= PLACES:
        MEMORIES.pop(next(iter(MEMORIES)))
    return MEMORIES.setdefault(state, Memory())


def files_of(source: ConfigSource) -> tuple[tuple[str, int, int], ...]:
    """Returns (path, time of the last change in ns, bytes) of every config file in the folder of a source."""
    if source.scheme() != "file":
        return ()
    facts = ((str(path), path.stat()) for path in sorted(Path(source.path).rglob("*.yaml")))
    return tuple((path, fact.st_mtime_ns, fact.st_size) for path, fact in facts)


@lru_cache(maxsize=8192)
def _parse(line: str) -> Override:
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides([line])[0]
    except HydraException as error:
        return parser.parse_overrides([quote_value(line, str(error))])[0]


def quote_value(line: str, reason: str) -> str:
    """Returns an override that Hydra does not parse with its value in quotes: that of a file named été(1).txt.

    Raises ConfigError where the line is no override, and where the value may be something else than one text.
    """
    key, equals, value = line.partition("=")
    if not equals or not KEY.fullmatch(key):
        raise ConfigError(f"{line} is not KEY=VALUE or GROUP=CHOICE; see `kleiber train --help`")
    if not NOT_ONE_TEXT.intersection(value):
        return f"{key}='{value}'"
    lines = [text for text in reason.splitlines() if not text.strip().startswith(("See https", "^", "Lexer"))]
    detail = f" ({'; '.join(lines)})" if lines else ""
    raise ConfigError(
        f"{line} cannot be read{detail}: a text with letters outside ASCII, quotes, brackets, parentheses, = "
        f"or other signs needs inner quotes: \"{key}='...'\""
    )


def parse_overrides(lines: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """Parses overrides, each text once. Raises ConfigError for a line that is not an override."""
    lines = [LINE_BREAK.sub(lambda part: part[1] or " ", line) if STRUCTURE.match(line) else line for line in lines]
    parsed = [_parse(line) for line in lines]
    parser = OverridesParser.create(config_loader=loader)  # `glob` in a sweep lists the choices of the loader
    return [
        parser.parse_overrides([line])[0] if o.is_sweep_override() else o for line, o in zip(lines, parsed, strict=True)
    ]


class FilesReadOnce(CachingConfigRepository):
    """The configs of a repository, read from `files` where they have been read before."""

    def __init__(self, delegate: IConfigRepository, files: dict[str, bytes]) -> None:
        # Not a deep copy, as Hydra makes: `initialize_sources` replaces the list of sources, and nothing changes one.
        self.delegate = copy.copy(delegate)
        self.cache = {}
        self.files = files

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Looks configs up in other sources from now on."""
        super().initialize_sources(config_search_path)
        self.files = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Returns a config, which the caller may change; None if there is none."""
        if config_path not in self.cache:
            if config_path not in self.files:
                self.files[config_path] = pickle.dumps(self.delegate.load_config(config_path))
            self.cache[config_path] = pickle.loads(self.files[config_path])
        return self.cache[config_path]


class Loader(ConfigLoaderImpl):
    """Composes configs as Hydra does. The choices of groups are merged once, and the values of keys set afterwards."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.memory = memory_of(self.repository.get_sources())

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = parse_overrides(overrides, self)
        repository = FilesReadOnce(self.repository, self.memory.files)
        self._process_config_searchpath(config_name, parsed, repository)
        return parsed, repository

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        parsed = parse_overrides(overrides, self)
        if any(override.key_or_group == "hydra.searchpath" for override in parsed):
            return super()._load_configuration_impl(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        values = [override for override in parsed if self._sets_value(override)]
        config = self._merge(config_name, self.without_values(overrides, parsed), run_mode)
        self._apply_overrides_to_config(values, config)
        self._describe(config, parsed)
        return config

    def without_values(self, lines: Sequence[str], parsed: Sequence[Override]) -> list[str]:
        """Returns the overrides that decide which files are merged, all where they name folders with files."""
        if any(override.key_or_group == "hydra.searchpath" for override in parsed):
            return [*lines]
        return [line for line, override in zip(lines, parsed, strict=True) if not self._sets_value(override)]

    def _sets_value(self, override: Override) -> bool:
        """Whether Hydra applies an override to the merged files: of a key, or a mapping for a group."""
        if override.is_sweep_override():
            return False
        name, groups = override.key_or_group, self.memory.groups
        if name not in groups:
            groups[name] = self.repository.group_exists(name)
        return isinstance(override.value(), dict) or not groups[name]

    def _merge(self, config_name: str | None, choices: list[str], run_mode: RunMode) -> DictConfig:
        """Returns a copy of the merged files of these choices."""
        key, merged = (config_name, run_mode, *choices), self.memory.merged
        if key not in merged:
            config = super()._load_configuration_impl(config_name, choices, run_mode, validate_sweep_overrides=False)
            if len(merged) >= LIMIT:
                merged.pop(next(iter(merged)))
            merged[key] = pickle.dumps(config)
        return pickle.loads(merged[key])

    def _describe(self, config: DictConfig, parsed: Sequence[Override]) -> None:
        """Writes what Hydra's node `hydra` says about the overrides and about this process."""
        node = config.hydra
        for name, of_hydra in (("hydra", True), ("task", False)):
            lines = [override.input_line for override in parsed if override.is_hydra_override() == of_hydra]
            node.overrides[name] = lines
        node.runtime.cwd = os.getcwd()
        with open_dict(node):
            for variable in node.job.env_copy:
                node.job.env_set[variable] = os.environ[variable]
        names = node.job.config.override_dirname
        node.job.override_dirname = get_overrides_dirname(
            overrides=[override for override in parsed if not override.is_hydra_override()],
            exclude_keys=names.exclude_keys,
            item_sep=names.item_sep,
            kv_sep=names.kv_sep,
        )
