"""Where each value of a composed config comes from: a file, an override, or the default of a class (`kleiber config`).

The files are merged in the order of Hydra's defaults list, and the last one that sets a value is its source. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

import yaml
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kleiber.config.check import PLAIN
from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError
from kleiber.config.hydra_keys import HYDRA_KEYS
from kleiber.config.layer_checks import SHARED
from kleiber.config.targets import SUPPLIED, signature
from kleiber.types import Config

NESTED = "."  # between the parts of a key
COMMENT_COLUMN = 44
OVERRIDE = "override"
NOT_LITERAL = "..."  # a default that is computed


@dataclass(frozen=True)
class Sources:
    """The sources of the values of a composed config, by dotted key; a key stands for everything below it too."""

    by_key: dict[str, str]

    def of(self, key: str) -> str:
        """Returns the source of a value: that of its key, else that of the nearest key above it."""
        while key not in self.by_key and NESTED in key:
            key = key.rpartition(NESTED)[0]
        return self.by_key.get(key, "default")

    def set(self, key: str, value: object, source: str) -> None:
        """Notes that `source` sets the value at `key`; a mapping is merged into the one that was there."""
        if isinstance(value, Mapping) and value:
            for name, child in value.items():
                self.set(f"{key}{NESTED}{name}" if key else str(name), child, source)
            return
        below = [other for other in self.by_key if other.startswith(key + NESTED)]
        if value == {} and below:  # merged into the mapping that was there, it changes nothing
            return
        for other in below:
            del self.by_key[other]
        has_interpolation = isinstance(value, str) and "${" in value
        self.by_key[key] = f"{source}: {value}" if has_interpolation else source

    def set_changes(self, before: object, after: object, source: str, key: str = "") -> None:
        """Notes `source` for every value of a config that has changed from `before` to `after`.

        An overridden value keeps its source: only the way in which it is written has changed.
        """
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for name, value in after.items():
                self.set_changes(before.get(name), value, source, f"{key}{NESTED}{name}" if key else str(name))
        elif before != after and self.of(key) != OVERRIDE:
            self.set(key, after, source)


def find_sources(composer: Composer, overrides: list[str]) -> Sources:
    """Returns the sources of all values that files and overrides set.

    Raises ConfigError for an override with several values, because it makes a sweep.
    """
    prepared = composer.prepare(overrides)
    parsed = composer.parse(prepared)
    for override in parsed:
        if override.is_sweep_override():
            line = str(override.input_line).lstrip("+")
            raise ConfigError(f"{line} is a sweep, and this command shows the config of one run: give one value")
    sources = Sources(dict(_sources_of_files(composer, composer.loader.without_values(prepared, parsed))))
    typed = {line.lstrip("+~").partition("=")[0] for line in overrides}
    for override in parsed:
        key = override.key_or_group
        if not composer.choices(key) and key.split(NESTED)[0] != "hydra" and not override.is_delete():
            source = OVERRIDE if key in typed else "cleared by another key of the budget"
            sources.set(key, override.value(), source)
    return sources


def _sources_of_files(composer: Composer, choices: list[str]) -> dict[str, str]:
    """Returns the sources of the values that files set, which cells of a sweep share that choose the same files."""
    kept = composer.sources_of_files
    if tuple(choices) in kept:
        return kept[tuple(choices)]
    sources = Sources({})
    for default in composer.loader.compute_defaults_list(composer.config_name, choices, RunMode.RUN).defaults:
        package = str(default.package or "")
        if default.config_path is None or package.split(NESTED)[0] == "hydra":
            continue
        loaded = composer.repository.load_config(default.config_path)
        if loaded is None:
            continue
        folder = Path(str(loaded.path).removeprefix("file://"))
        place = Path("conf") if loaded.provider == "main" else folder
        content = OmegaConf.to_container(loaded.config, resolve=False)
        assert isinstance(content, dict)
        values = {name: value for name, value in content.items() if name not in ("defaults", "hydra")}
        if values:
            sources.set(package, values, str(place / f"{default.config_path}.yaml"))
    return kept.setdefault(tuple(choices), sources.by_key)


def is_set(composer: Composer, overrides: list[str], key: str) -> bool:
    """Whether an override or a file of the user sets the value at a key, even to its default.

    kleiber's choices of the key's group and its studies do not count, because they repeat the defaults of the class.
    """
    defaults = ("default", "conf/train.yaml", "conf/study/", f"conf/{key.partition(NESTED)[0]}/")
    return not find_sources(composer, overrides).of(key).startswith(defaults)


def annotated_yaml(config: Config, sources: Sources) -> Iterator[str]:
    """Yields the lines of a config as YAML, each value with its source as a comment.

    Arguments that no file and no override sets follow with the default of their class.
    """
    model: Config = config.get("model") or {}
    passed = {name: model[name] for name in SHARED if model.get(name) is not None}
    if passed.get("positions") == "learned":
        passed["positions"] = "none"
    yield from _lines(config, sources, passed, "", 0)


def _lines(node: Config, sources: Sources, passed: Config, path: str, depth: int) -> Iterator[str]:
    """Yields the lines of a node; `passed` are the options of the attention that the model decides."""
    for name, value in node.items():
        key = f"{path}{NESTED}{name}" if path else str(name)
        start = f"{'  ' * depth}{name}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from _lines(value, sources, passed, key, depth + 1)
        else:
            yield _line(f"{start} {flow(value)}", sources.of(key))
    for name, text, source in unset_arguments(node, path):
        if path.startswith("model.attention") and name in passed:
            text, source = flow(passed[name]), f"model.{name}"
        yield _line(f"{'  ' * depth}{'# ' * (text == NOT_LITERAL)}{name}: {text}", source)


def _line(text: str, source: str) -> str:
    return f"{text:{COMMENT_COLUMN}}  # {source}"


def unset_arguments(node: Config, path: str) -> Iterator[tuple[str, str, str]]:
    """Yields name, default and source of every argument that a node leaves to the default of its class."""
    if "_target_" in node:
        target = str(node["_target_"])
        for name, parameter in signature(target).parameters.items():
            if name not in node and name not in SUPPLIED and name not in HYDRA_KEYS and not parameter.required:
                text = flow(parameter.default) if parameter.is_literal else NOT_LITERAL
                yield name, text, f"default of {target}"
    plain = PLAIN.get(path)
    if isinstance(plain, type) and is_dataclass(plain):
        for field in fields(plain):
            if field.name not in node and field.default is not MISSING:
                yield field.name, flow(field.default), f"default of {path}"


def flow(value: object) -> str:
    """Returns a value as YAML in one line."""
    plain = OmegaConf.to_container(value) if isinstance(value, DictConfig) else value
    if isinstance(plain, tuple):
        plain = list(plain)
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
