"""Composes a config from a command line through Hydra, with errors that name the key and the fix. Imports no torch.

Every `key=value` becomes `++key=value`, so an argument of a class can be set without an entry in a YAML file, with or
without a `+`. Groups and choices are checked here, before Hydra composes; `kleiber.config.check` checks the result.

Only some of Hydra's own keys may be set, because kleiber has its launchers, sweepers and folders.
Hydra's other launchers and sweepers would call a task function for each cell, which trains nothing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kleiber.config.check import NODES, TOP_LEVEL, unknown_key
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.extensions import TORCH_OPTIMIZERS, conf_dir, extension_folders, require_allowed
from kleiber.config.loader import FilesReadOnce, Loader, parse_overrides
from kleiber.config.stages import LIMITS
from kleiber.config.url_secrets import map_secrets, remember_secrets
from kleiber.config.words import in_our_words, words
from kleiber.types import Json

USUAL = {"model/router": "topk", "objective": "clm"}  # choices that the names of runs leave out

Composed = TypeVar("Composed")
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


def find_choice(group: str, name: str) -> Path | None:
    """Returns the file of a choice, in kleiber's conf folder or in that of an extension; None if there is none."""
    files = [folder / group / f"{name}.yaml" for folder in (conf_dir(), *extension_folders())]
    return next((file for file in files if file.is_file()), None)


def read_choice(group: str, name: str) -> Json:
    """Returns the content of the file of a choice. Raises ValueError, which lists the choices, if there is none."""
    file = find_choice(group, name)
    if file is None:
        names = list_choices(group)
        raise ValueError(f"{group}={name} must be one of {', '.join(names)}.{did_you_mean(name, names)}")
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)  # type: ignore[return-value]


def config_files() -> dict[str, Path]:
    """Returns the files below the config groups by their place, such as data/canaries: kleiber's first."""
    files: dict[str, Path] = {}
    for folder in (conf_dir(), *extension_folders()):
        for file in sorted(folder.glob("*/**/*.yaml")):
            files.setdefault(str(file.relative_to(folder).with_suffix("")), file)
    return files


def list_choices(group: str) -> list[str]:
    """Returns the choices of a group that `find_choice` finds; files such as study/_small are none."""
    roots = [folder / group for folder in (conf_dir(), *extension_folders())]
    names = {str(file.relative_to(root).with_suffix("")) for root in roots for file in root.rglob("[!_]*.yaml")}
    return sorted(names)


class Composer:
    """Hydra with the choices of the user's `--config-dir`, of kleiber, of extensions and of hydra.searchpath.

    A choice that several of them have is taken from the first, in this order.
    """

    def __init__(self, config_name: str = "train", config_dir: str | None = None) -> None:
        self.config_name = config_name
        search = create_config_search_path(str(conf_dir()))
        if config_dir is not None:
            extra = Path(config_dir).absolute()
            if not extra.is_dir():
                raise ConfigError(f"--config-dir {config_dir} must be an existing folder")
            search.prepend(provider="command-line", path=f"file://{extra}", anchor=SearchPathQuery(provider="main"))
        for folder in extension_folders():
            search.append(provider="extension", path=f"file://{folder}", anchor=SearchPathQuery(provider="main"))
        self.loader = Loader(search)
        self.hydra = Hydra("train", self.loader)
        GlobalHydra.instance().hydra = self.hydra
        self.use_search_path([])

    def use_search_path(self, overrides: list[Override]) -> None:
        """Looks choices up in the folders of hydra.searchpath too, which the overrides or the root config may set.

        Raises ConfigError for a folder that does not exist.
        """
        repository = FilesReadOnce(self.loader.repository, self.loader.memory.files)
        try:
            with warnings.catch_warnings(action="ignore"):
                self.loader._process_config_searchpath(self.config_name, overrides, repository)
        except HydraException as error:
            raise ConfigError(explain(error)) from error
        missing = [source.path for source in repository.get_sources() if not source.available()]
        if missing:
            raise ConfigError(f"hydra.searchpath: {', '.join(missing)} must be existing folders, as in [file://conf]")
        remembered = self.loader.memory.choices.setdefault(self.config_name, {})
        self.repository, self._choices = repository, {} if overrides else remembered
        self.sources_of_files: dict[tuple[str, ...], dict[str, str]] = {}  # of `provenance`, by the choices of files

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN, validate_sweeps: bool = True) -> DictConfig:
        """Returns the composed config, with the node `hydra`; `overrides` are as the user wrote them."""
        options = {"with_log_configuration": False, "validate_sweep_overrides": validate_sweeps}
        config = self._compose(
            overrides, lambda prepared: self.hydra.compose_config(self.config_name, prepared, mode, **options)
        )
        check_hydra_plugins(config)
        return config

    def is_sweep(self, overrides: list[str]) -> bool:
        """Whether one of the chosen files asks for a sweep with `hydra.mode: MULTIRUN`."""
        mode = self._compose(overrides, lambda prepared: self.hydra.get_mode(self.config_name, prepared))
        return mode == RunMode.MULTIRUN

    def multirun(self, overrides: list[str], task: Callable[[DictConfig], object]) -> None:
        """Calls `task` with the config of every cell of a sweep, through the configured sweeper and launcher."""

        self.compose(overrides, RunMode.MULTIRUN)

        def sweep(prepared: list[str]) -> None:
            lines = [*prepared, "hydra.mode=MULTIRUN"]
            self.hydra.multirun(self.config_name, task, lines, with_log_configuration=False)

        self._compose(overrides, sweep)

    def _compose(self, overrides: list[str], call: Callable[[list[str]], Composed]) -> Composed:
        """Returns what `call` returns for the overrides as Hydra reads them. Raises ConfigError for its errors."""
        prepared = self.prepare(overrides)
        while True:
            try:
                return call(prepared)
            except (HydraException, OmegaConfBaseException) as error:
                cleared = null_first(prepared, str(error))
                if cleared is None:
                    raise ConfigError(explain(error)) from error
                prepared = cleared

    def parse(self, overrides: list[str]) -> list[Override]:
        """Parses overrides. Raises ConfigError for one that is not GROUP=CHOICE or KEY=VALUE."""
        try:
            return parse_overrides(overrides, self.loader)
        except HydraException as error:
            raise ConfigError(explain(error)) from error

    def prepare(self, overrides: list[str]) -> list[str]:
        """Returns the overrides for Hydra; prepared overrides stay as they are.

        A budget key on the command line clears the budget keys of files, by setting the others to null.
        """
        parsed = self.parse(overrides)
        if any(override.key_or_group == "hydra.searchpath" for override in parsed):
            self.use_search_path(parsed)
        lines = [self._prepare(override) for override in parsed]
        return [*(line for line in lines if line is not None), *budget_nulls(parsed)]

    def _prepare(self, override: Override) -> str | None:
        key, line = override.key_or_group, str(override.input_line)
        if key.split(".")[0].split("/")[0] == "hydra":
            check_hydra_override(override)
            return line
        if self.choices(key):
            self._check_choice(override)
            return self._choose(key, line.lstrip("+"), override)
        if override.package is not None or "/" in key:
            groups = list(self.groups())
            near = in_our_words(key, str(override.value())) or did_you_mean(key, groups)
            raise ConfigError(f"{key} is not a group.{near} Groups: {', '.join(groups)}")
        self._check_key(override)
        return line if override.is_delete() else "++" + line.lstrip("+")

    def _choose(self, group: str, line: str, override: Override) -> str | None:
        """Returns the override of a group. Hydra cannot choose null, so such a group is deleted from the defaults."""
        if override.is_delete() or override.is_sweep_override() or override.value() is not None:
            return line
        return f"~{group}" if group in NODES else None

    def _check_key(self, override: Override) -> None:
        key = override.key_or_group
        top = key.split(".")[0]
        if top not in TOP_LEVEL:
            raise ConfigError(unknown_key(key, top, None if override.is_sweep_override() else override.value()))
        options, value = self.choices(key.replace(".", "/")), override.value()
        if isinstance(value, str) and value in options:
            raise ConfigError(
                f"{key}={value} sets a key, and {value} is a choice: write {key.replace('.', '/')}={value}"
            )

    def _check_choice(self, override: Override) -> None:
        group, options = override.key_or_group, self.choices(override.key_or_group)
        for choice in chosen_names(override):
            if choice not in options:
                if choice.startswith(TORCH_OPTIMIZERS):
                    require_allowed(choice)
                near = in_our_words(group, choice) or did_you_mean(choice, options)
                if group == "data" and Path(choice).exists():
                    path = f"data.path={choice}"
                    near = f" Plain text is data=text {path}, a table of labeled texts data=labelled {path}."
                raise ConfigError(f"{group}={choice} is not a choice of {group}.{near} Choices: {', '.join(options)}")

    def choices(self, group: str) -> list[str]:
        """Returns the choices of a group, those in nested folders as `glue/sst2`; none if there is no such group."""
        if group not in self._choices:  # Hydra loads a config for each question
            self._choices[group] = self._look_up(group)
        return self._choices[group]

    def _look_up(self, group: str) -> list[str]:
        if not group or ".." in group or not self.repository.group_exists(group):
            return []
        nested = [f"{sub}/{name}" for sub in self.list_groups(group) for name in self.choices(f"{group}/{sub}")]
        # Files such as study/_sweep are not choices: other files inherit from them.
        choices = [name for name in self.repository.get_group_options(group) if not name.startswith("_")]
        # A nested folder that is a group itself (model/mlp) contains no choices of its parent.
        return choices + [name for name in nested if name.split("/")[0] not in self.nested_groups(group)]

    def list_groups(self, parent: str) -> list[str]:
        """Returns the folders in a group, or those at the top for ""."""
        return self.repository.get_group_options(parent, ObjectType.GROUP)

    def nested_groups(self, group: str) -> set[str]:
        """Returns the nested folders that are groups, as model/mlp is; data/glue contains choices of data instead."""
        return set(self.list_groups(group)) if group == "model" else set()

    def groups(self, parent: str = "") -> Iterator[str]:
        """Yields all groups except those of Hydra."""
        for name in self.list_groups(parent):
            path = f"{parent}/{name}" if parent else name
            if path != "hydra":
                if self.repository.get_group_options(path):
                    yield path
                if path.split("/")[0] == "model":  # elsewhere a nested folder contains choices, as data/glue does
                    yield from self.groups(path)


def resolve_config(cfg: DictConfig) -> tuple[Json, str]:
    """Returns the config as plain data, without the node `hydra`, which is removed, and what kind of run it is.

    The kind is the chosen model, with the router and the objective where they are not the usual ones: `moe-hash-dpo`.
    Raises ConfigError for a key that has no value.
    """
    choices = cfg.hydra.runtime.choices
    model = str(choices.get("model", "run")).split("/")[-1]
    others = [str(choices.get(group)) for group, usual in USUAL.items() if choices.get(group) not in (None, usual)]
    model = "-".join([model, *(name for name in others if name != "null")])
    with open_dict(cfg):
        cfg.pop("hydra")  # a copy of the other keys would take longer than all else here
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be set: there is no default for it") from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(config, dict)
    config = map_secrets(config, remember_secrets)  # of files, and of the environment that they name
    complete = {**dict.fromkeys(NODES), **{str(key): value for key, value in config.items()}}
    for key in ("callbacks", "logger"):  # null: none
        complete[key] = complete[key] or {}
    return complete, model


def budget_nulls(overrides: list[Override]) -> list[str]:
    """Returns overrides that clear the other budget keys, if the command line sets one. Raises ConfigError for two."""
    names = {f"budget.{name}" for name in LIMITS}
    for key in (o.key_or_group for o in overrides if o.key_or_group.startswith(tuple(f"{name}." for name in names))):
        raise ConfigError(f"{key} is a key of a number: write {key.rpartition('.')[0]}=NUMBER")
    lines = {o.key_or_group: str(o.input_line) for o in overrides if o.key_or_group in names}
    limits = {key: line for key, line in lines.items() if line.split("=", 1)[1] not in ("null", "~")}
    if len(limits) > 1:
        raise ConfigError(f"{' and '.join(limits.values())} exclude each other: set only one")
    if not limits:
        return []
    return [f"++budget.{name}=null" for name in LIMITS if f"budget.{name}" not in lines]


def null_first(prepared: list[str], message: str) -> list[str] | None:
    """Returns the overrides with a null before the one that Hydra could not merge; None where that does not help.

    Hydra merges a value into that of the files, and so refuses a dictionary for a list, or a list for a dictionary.
    The null has no `++`, because a sweep keeps one override of each spelling of a key.
    """
    line = message.partition("Error merging override ")[2].partition("\n")[0].strip()
    clear = f"{line.partition('=')[0].lstrip('+')}=null"
    if line not in prepared or clear in prepared:
        return None
    at = prepared.index(line)
    return [*prepared[:at], clear, *prepared[at:]]


def explain(error: Exception) -> str:
    """Returns Hydra's message without its advice to write `+key` and without the list of search paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    drop = (
        "To append to your config", "Set the environment variable", "Config search path", "provider=", "object_type=",
    )  # fmt: skip
    if any("No match in the defaults list" in line for line in lines):
        group = lines[0].split("'")[1]
        return f"{group} cannot be chosen with these choices (model/router, for example, needs model=moe)"
    if lines and lines[0].startswith("Ambiguous value for argument '"):
        key, _, value = lines[0].split("'", 1)[1].rstrip("'").lstrip("+").partition("=")
        return (
            f"{key}={value} has several values: add -m to train a run for each, write {key}=[{value}] for a list, or "
            f"quote a text with commas: \"{key}='{value}'\""
        )
    kept = [line for line in lines if not line.startswith(drop)]
    return " ".join(kept) or type(error).__name__
