"""Compositions of our own config files share what the values of keys cannot change, which takes most of their time."""

import copy
from dataclasses import astuple
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from omegaconf import DictConfig

from kleiber.config.compose import conf_dir


class Copies:
    """The configs of a repository as copies, which a composition may change."""

    def __init__(self, repository: IConfigRepository) -> None:
        self.repository, self.get_schema_source = repository, repository.get_schema_source

    def load_config(self, config_path: str) -> Any:
        result = copy.copy(self.repository.load_config(config_path))
        result.config = copy.deepcopy(result.config)
        return result


def sources_of(repository: IConfigRepository) -> tuple[str, ...] | None:
    """Where the configs of a repository come from; None where a folder is not ours, whose files a test may change."""
    sources = repository.get_sources()
    strange = [source for source in sources if source.scheme() == "file" and source.path != str(conf_dir())]
    return None if strange else tuple(f"{source.scheme()}://{source.path}" for source in sources)


def share(patch: pytest.MonkeyPatch) -> None:
    """Loads a file once, merges the same choices once, and makes Hydra's table for interpolations only where a defaults
    list has any.
    """
    load, compose = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    tabulate, loaded, composed = defaults_list._create_interpolation_map, {}, {}

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        sources = sources_of(self)
        if sources is None:
            return load(self, config_path)
        if (sources, config_path) not in loaded:
            loaded[sources, config_path] = load(self, config_path)
        return loaded[sources, config_path]

    def compose_once(self: ConfigLoaderImpl, defaults: list[Any], repo: IConfigRepository) -> DictConfig:
        sources = sources_of(repo)
        if sources is None:
            return compose(self, defaults, repo)
        choices = (sources, *(astuple(default) for default in defaults))
        if choices not in composed:
            composed[choices] = compose(self, defaults, Copies(repo))
        return copy.deepcopy(composed[choices])

    def tabulate_if_used(overrides: Any, entries: list[Any], self_added: bool) -> DictConfig | None:
        return tabulate(overrides, entries, self_added) if any(entry.is_interpolation() for entry in entries) else None

    patch.setattr(ConfigRepository, "load_config", load_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_once)
    patch.setattr(defaults_list, "_create_interpolation_map", tabulate_if_used)
