"""Composes a config from a command line through Hydra, with errors that name the key and the fix. Imports no torch.

Every `key=value` becomes `++key=value`, so an argument of a class can be set without an entry in any YAML, and a `+` in
front changes nothing; `kleiber.config.check` then checks the result strictly. Groups and choices are checked here,
before Hydra composes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kleiber.config.check import NODES, TOP_LEVEL
from kleiber.config.errors import ConfigError, did_you_mean

BUDGET = ("tokens", "flops", "ratio", "steps")
OURS_TO_SET = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")


def conf_dir() -> Path:
    """The folder of train.yaml: the repository's where there is one, since an editable install copies a stale one."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/train.yaml beside {package}: reinstall kleiber")


class Composer:
    """Hydra over our conf folder and, in front of it, the user's `--config-dir`."""

    def __init__(self, config_name: str = "train", config_dir: str | None = None) -> None:
        self.config_name = config_name
        search = create_config_search_path(str(conf_dir()))
        if config_dir is not None:
            extra = Path(config_dir).absolute()
            if not extra.is_dir():
                raise ConfigError(f"--config-dir {config_dir}: no such folder")
            search.prepend(provider="command-line", path=f"file://{extra}", anchor=SearchPathQuery(provider="schema"))
        self._choices: dict[str, list[str]] = {}
        GlobalHydra.instance().clear()
        self.hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=search)
        self.loader: Any = self.hydra.config_loader

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN, validate_sweeps: bool = True) -> DictConfig:
        """The composed config, `hydra` included; `overrides` as the user wrote them."""
        prepared = self.prepare(overrides)
        try:
            return self.hydra.compose_config(
                self.config_name, prepared, mode, with_log_configuration=False, validate_sweep_overrides=validate_sweeps
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(readable(error)) from error

    def is_sweep(self, overrides: list[str]) -> bool:
        """Whether a file among those chosen asks for a sweep by `hydra.mode: MULTIRUN`."""
        return self.hydra.get_mode(self.config_name, self.prepare(overrides)) == RunMode.MULTIRUN

    def multirun(self, overrides: list[str], task: Any) -> None:
        """Hands the cells of a sweep to `task` through Hydra's sweeper and our launcher."""
        prepared = [*self.prepare(overrides), "hydra.mode=MULTIRUN"]
        try:
            self.hydra.multirun(self.config_name, task, prepared, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(readable(error)) from error

    def parse(self, overrides: list[str]) -> list[Override]:
        try:
            return OverridesParser.create(config_loader=self.loader).parse_overrides(overrides)
        except HydraException as error:
            raise ConfigError(readable(error)) from error

    def prepare(self, overrides: list[str]) -> list[str]:
        """The overrides Hydra gets. Idempotent.

        A budget key on the command line clears the budget keys of files, so it brings `null` for the others.
        """
        parsed = self.parse(overrides)
        lines = [self._prepare(override) for override in parsed]
        return [*(line for line in lines if line is not None), *budget_nulls(parsed)]

    def _prepare(self, override: Override) -> str | None:
        key, line = override.key_or_group, str(override.input_line)
        if key in OURS_TO_SET:
            raise ConfigError(f"{key} cannot be set: the config determines the folder of a run; set root= or name=")
        if key.split(".")[0].split("/")[0] == "hydra":
            return line
        if self.choices(key):
            self._check_choice(override)
            return self._choose(key, line.lstrip("+"), override)
        if override.package is not None or "/" in key:
            groups = list(self.groups())
            raise ConfigError(f"{key}: no such group.{did_you_mean(key, groups)} Groups: {', '.join(groups)}")
        self._check_key(override)
        return line if override.is_delete() else "++" + line.lstrip("+")

    def _choose(self, group: str, line: str, override: Override) -> str | None:
        """Hydra cannot choose null where the default is a choice: then the group is left out."""
        if override.is_delete() or override.is_sweep_override() or override.value() is not None:
            return line
        return f"~{group}" if group in NODES else None

    def _check_key(self, override: Override) -> None:
        key = override.key_or_group
        top = key.split(".")[0]
        if top not in TOP_LEVEL:
            raise ConfigError(f"{key}: no such key.{did_you_mean(top, TOP_LEVEL)} Keys: {', '.join(TOP_LEVEL)}")
        options, value = self.choices(key.replace(".", "/")), override.value()
        if isinstance(value, str) and value in options:
            raise ConfigError(f"{key} is a group: write {key.replace('.', '/')}={value}")

    def _check_choice(self, override: Override) -> None:
        group, options = override.key_or_group, self.choices(override.key_or_group)
        for choice in chosen(override):
            if choice not in options:
                near = did_you_mean(choice, options)
                raise ConfigError(f"{group}={choice}: no such choice.{near} Choices of {group}: {', '.join(options)}")

    def choices(self, group: str) -> list[str]:
        """Choices of a group, those of nested groups as `glue/sst2`; empty when there is no such group."""
        if group not in self._choices:  # Hydra loads a config for each look
            self._choices[group] = self._look_up(group)
        return self._choices[group]

    def _look_up(self, group: str) -> list[str]:
        if not group or ".." in group or not self.loader.repository.group_exists(group):
            return []
        nested = [f"{sub}/{name}" for sub in self.loader.list_groups(group) for name in self.choices(f"{group}/{sub}")]
        # study/_sweep and its like are no choices: other files inherit them.
        choices = [name for name in self.loader.get_group_options(group) if not name.startswith("_")]
        # A nested folder with a group of its own in the defaults list (model/mlp) is no choice of its parent.
        return choices + [name for name in nested if name.split("/")[0] not in self.own_groups(group)]

    def own_groups(self, group: str) -> set[str]:
        """Nested groups chosen for themselves, as model/mlp is, rather than as part of a name, as glue/sst2."""
        return set(self.loader.list_groups(group)) if group == "model" else set()

    def groups(self, parent: str = "") -> Iterator[str]:
        """All groups but Hydra's own."""
        for name in self.loader.list_groups(parent):
            path = f"{parent}/{name}" if parent else name
            if path != "hydra":
                if self.loader.get_group_options(path):
                    yield path
                if path.split("/")[0] == "model":  # elsewhere a nested folder holds choices, as data/glue does
                    yield from self.groups(path)


def resolved(cfg: DictConfig) -> tuple[dict[str, Any], str]:
    """The config as plain data, less `hydra`, and the name of the chosen model."""
    model = str(cfg.hydra.runtime.choices.get("model", "run")).split("/")[-1]
    with open_dict(cfg):
        job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        config = OmegaConf.to_container(job, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be set: there is no default for it") from error
    except OmegaConfBaseException as error:
        raise ConfigError(readable(error)) from error
    assert isinstance(config, dict)
    complete = {**dict.fromkeys(NODES), **{str(key): value for key, value in config.items()}}
    for key in ("callbacks", "logger"):  # null means none of them
        complete[key] = complete[key] or {}
    return complete, model


def chosen(override: Override) -> Iterator[str]:
    """Every choice that a group override names: of a sweep, of a list, or the one; null is none."""
    if override.is_delete():
        return
    if override.is_sweep_override():
        if override.is_discrete_sweep():
            yield from (value.strip("'\"") for value in override.sweep_string_iterator() if value[:1] != "[")
        return
    value = override.value()
    for item in value if isinstance(value, list) else [value]:
        if item is not None:
            yield str(item)


def budget_nulls(overrides: list[Override]) -> list[str]:
    """`++budget.x=null` for the budget keys that the command line leaves, when it sets one; two are refused."""
    names = {f"budget.{name}" for name in BUDGET}
    lines = {o.key_or_group: str(o.input_line) for o in overrides if o.key_or_group in names}
    limits = {key: line for key, line in lines.items() if line.split("=", 1)[1] not in ("null", "~")}
    if len(limits) > 1:
        raise ConfigError(f"{' and '.join(limits.values())} exclude each other: set only one")
    if not limits:
        return []
    return [f"++budget.{name}=null" for name in BUDGET if f"budget.{name}" not in lines]


def readable(error: Exception) -> str:
    """Hydra's message without its advice to write `+key` and without the list of search paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    drop = (
        "To append to your config",
        "Set the environment variable",
        "Config search path",
        "provider=",
        "object_type=",
    )
    if any("No match in the defaults list" in line for line in lines):
        group = lines[0].split("'")[1]
        return f"{group}: no group in this config takes that choice (model/router, for example, needs model=moe)"
    kept = [line for line in lines if not line.startswith(drop)]
    return " ".join(kept) or type(error).__name__


HEAD = """Trains one language model, or a sweep of them.

    python train.py [FLAGS] [GROUP=CHOICE | KEY=VALUE]...

Examples
    python train.py                                      a small dense model on text that every machine has
    python train.py model=moe model.depth=3              a mixture of experts, one layer deeper
    python train.py model=bert objective=mlm             bidirectional, masked tokens
    python train.py -m name=first model=gpt,moe seed=0,1  a sweep of four; kleiber runs multirun/first lists it
    python train.py trainer=ddp trainer.devices=2        two processes, the same losses
    python train.py dry_run=true                         print the cost, train nothing
    python train.py trainer=smoke                        a test of ten seconds
"""
KEYS = {
    "model.depth=2": "the size: width = model.aspect * depth",
    "budget.tokens=20M": "training budget; or budget.flops=1e15, budget.ratio=20 (tokens/parameter), budget.steps=2000",
    "batch.tokens=4096": "tokens of one optimizer step; batch.micro=auto|INT sequences at once",
    "optimizer.lr=0.01": "the peak learning rate",
    "eval.every_steps=100": "validate during training, on eval.tokens=1M",
    "seed=0": "seed of weights, data order and dropout",
    "name=runs": "the folder under root=multirun, or under KLEIBER_ROOT",
    "resume=auto": "continue a run of the same config; never: train it again; PATH: continue in that folder",
    "dry_run=false": "true: print parameters, FLOPs, memory and time, and train nothing; FILE.json: also write them",
}
TAIL = """Flags
    -m, --multirun            sweep over comma-separated values
    --cfg job|hydra|all       print the composed config and stop
    --config-dir DIR          a folder of your own choices, which take precedence
    --info, --hydra-help      Hydra's own"""


def usage(composer: Composer) -> str:
    """The text of `python train.py --help`."""
    groups = {group: ", ".join(composer.choices(group)) for group in composer.groups()}
    wide = max(map(len, [*groups, *KEYS])) + 2
    chosen = "\n".join(f"    {group:{wide}}{choices}" for group, choices in groups.items())
    keys = "\n".join(f"    {key:{wide}}{text}" for key, text in KEYS.items())
    return f"{HEAD}\nGroups and their choices\n{chosen}\n\nKeys\n{keys}\n\n{TAIL}"
