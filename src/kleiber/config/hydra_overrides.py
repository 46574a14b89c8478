"""Which of Hydra's own keys a command line or a config file may set: kleiber has its launchers, sweepers and folders.

Hydra's other launchers and sweepers would call a task function for each cell, which trains nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from kleiber.config.errors import ConfigError
from kleiber.config.words import words

FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")
OTHER_LAUNCHER = "launcher=process launcher.workers=4"
SEARCH = "design=search design.sampler=tpe"


def check_hydra_override(override: Override) -> None:
    """Raises ConfigError, with the override to write, for a key of Hydra that kleiber sets or replaces."""
    key = override.key_or_group
    if key in FOLDER_KEYS:
        raise ConfigError(f"{key} cannot be set: the config determines the folder of a run. Set root= or name= instead")
    line, choice = str(override.input_line), ""
    if not override.is_delete() and not override.is_sweep_override():
        choice = str(override.value())
    if (key.startswith("hydra/launcher") and choice != "kleiber") or key.startswith("hydra.launcher"):
        raise ConfigError(refuse_launcher(line, choice))
    sets_sweeper = key.startswith("hydra.sweeper") and not key.startswith("hydra.sweeper.params")
    if (key.startswith("hydra/sweeper") and choice != "kleiber") or sets_sweeper:
        raise ConfigError(refuse_sweeper(line))


def check_hydra_plugins(config: DictConfig) -> None:
    """Raises ConfigError where a config file chooses another launcher or sweeper of Hydra than kleiber's."""
    hydra, choices = config.hydra, config.hydra.runtime.choices
    if not is_of_kleiber(target := str(hydra.launcher._target_)):
        raise ConfigError(
            refuse_launcher(f"hydra.launcher._target_={target}, of a config file,", choices["hydra/launcher"])
        )
    if not is_of_kleiber(target := str(hydra.sweeper._target_)):
        raise ConfigError(refuse_sweeper(f"hydra.sweeper._target_={target}, of a config file,"))


def is_of_kleiber(target: str) -> bool:
    """Whether the `_target_` of a launcher or sweeper is a class of kleiber's plugins."""
    return target.startswith("hydra_plugins.kleiber.")


def refuse_launcher(setting: str, choice: str) -> str:
    """Returns the error for a launcher of Hydra, whose name is `choice`."""
    _, way = words().get(f"hydra/launcher={choice}", ("", OTHER_LAUNCHER))
    return f"{setting} is not supported. To choose how the cells of a sweep run, write {way}"


def refuse_sweeper(setting: str) -> str:
    """Returns the error for a sweeper of Hydra."""
    return f"{setting} is not supported. To run all combinations of values, write -m KEY=A,B; to search, {SEARCH}"


def chosen_names(override: Override) -> Iterator[str]:
    """Yields every choice that the override of a group names: one, those of a list, or those of a sweep."""
    if override.is_delete():
        return
    if override.is_sweep_override():
        if override.is_discrete_sweep():
            yield from (value.strip("'\"") for value in override.sweep_string_iterator() if value[:1] != "[")
        return
    value = override.value()
    if isinstance(value, list):
        yield from ("null" if item is None else str(item) for item in value)
    elif value is not None:
        yield str(value)
