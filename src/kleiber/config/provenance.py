"""Where each value of a composed config comes from: a file or an override.

The files are merged in the order of Hydra's defaults list, and the last one that sets a value is its source. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra.types import RunMode
from omegaconf import OmegaConf

from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError

NESTED = "."  # between the parts of a key
OVERRIDE = "override"


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
