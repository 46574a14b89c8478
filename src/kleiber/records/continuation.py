"""Whether a command may continue the run in a folder, and whether that run is the one that it asks for.

`resume=PATH` continues a run with another duration, other loggers or other hardware. What it then trains is no longer
the result of the command that has begun the run, so that command is refused from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.config.nested import flatten
from kleiber.records.files import MAX_YAML_BYTES, write_bytes
from kleiber.records.folder import config_hash, identity, read_config
from kleiber.records.regular_files import read_bytes
from kleiber.records.summary_file import summary_or_warning
from kleiber.records.terminal import print_line
from kleiber.types import Config, Json

# Keys, or groups of keys, that may differ when a run is resumed with resume=PATH: duration, loggers, hardware.
MAY_DIFFER = ("budget", "logger", "trainer", "batch.micro")
FOLDER_OF_CONFIG = ("auto", "never")  # values of `resume` with which the config determines the folder


def continues_folder(config: Config) -> bool:
    """Whether a config continues the run in the folder that `resume` names."""
    return config["resume"] not in FOLDER_OF_CONFIG


def has_trained_under(folder: Path, config: Config) -> bool:
    """Whether the last process that trained the run in `folder` did so with `config`, as its summary.json notes."""
    return summary_or_warning(folder).get("config_hash") == config_hash(config)[:8]


@contextmanager
def config_kept_until_trained(config: Config) -> Iterator[None]:
    """Context after which a folder that `resume` names has its former config, unless it was trained with `config`."""
    names = ("config.yaml", "overrides.yaml")
    folder = Path(str(config["resume"]))
    former = {path: read_bytes(path, MAX_YAML_BYTES) for path in (folder / name for name in names) if path.is_file()}
    try:
        yield
    finally:
        if continues_folder(config) and not has_trained_under(folder, config):
            for path, content in former.items():
                if read_bytes(path, MAX_YAML_BYTES) != content:
                    write_bytes(path, content)


def check_same_config(folder: Path, config: Config) -> None:
    """Raises ConfigError where the run in `folder` cannot continue with `config`.

    Keys other than those of MAY_DIFFER must be equal. So must those on which the steps so far depend: a budget with
    privacy, trainer.max_steps of a trunk with branches, and whether trainer.precision is 64.
    """
    old, new = read_config(folder), dict(config)
    fixed = ["budget"] if new.get("privacy") else []
    fixed += ["trainer.max_steps"] if (new.get("stages") or {}).get("branches") else []
    fixed += ["trainer.precision"] if _has_double_weights(old) != _has_double_weights(new) else []
    changed = changed_keys(old, new).items()
    wrong = [text for key, text in changed if not _is_below(key, MAY_DIFFER) or _is_below(key, fixed)]
    if wrong:
        raise ConfigError(f"resume={folder} was started with another config: {'; '.join(wrong)}")


def check_never_continued(folder: Path, config: Config) -> None:
    """Raises ConfigError where the folder of `config` contains a run that resume=PATH has continued with another one.

    summary.json notes that. A run of an earlier version of kleiber shows it by its config.yaml.
    """
    summary, differences = summary_or_warning(folder), dict[str, str]()
    if summary and not has_trained_under(folder, config):
        with suppress(ConfigError):  # config.yaml is missing or damaged, and will be written again
            differences = changed_keys(read_config(folder), config)
    if summary.get("continued") or differences:
        detail = f" ({'; '.join(differences.values())})" if differences else ""
        raise ConfigError(
            f"resume=PATH has continued the run in {folder} with another config than that of this command{detail}: "
            "rename that folder, or set resume=never, to train this run anew"
        )


def warn_without_effect(configs: Mapping[Path, Config]) -> None:
    """Prints the keys that no longer have an effect, because runs with resume=auto are finished.

    Those are callbacks and eval.every_tokens, which are no part of the identity of a run and act while it trains.

    configs  of a command line, by the folder of the run
    """
    keys = {folder: keys_without_effect(folder, config) for folder, config in configs.items()}
    finished = [folder for folder in configs if keys[folder]]
    if finished:
        names = ", ".join(dict.fromkeys(key for folder in finished for key in keys[folder]))
        runs = f"{finished[0]} is"
        if len(finished) > 1:
            runs = f"{len(finished)} runs in {finished[0].parent} are"
        print_line(
            f"warning: {names} no longer has an effect, because {runs} finished: set resume=never to train again",
            err=True,
        )


def keys_without_effect(folder: Path, config: Config) -> list[str]:
    """Returns the keys of a config that have no effect on the run in a folder, or its archive; none before its end."""
    from kleiber.records.catalog import find_run

    recorded: Json = {}
    with suppress(ConfigError):  # config.yaml is missing or damaged
        run = find_run(folder) if config["resume"] == "auto" else None
        recorded = run.config if run is not None and run.finished else {}
    if not recorded:
        return []
    old, new = recorded.get("eval") or {}, config["eval"]
    keys = _changed("callbacks", recorded.get("callbacks") or {}, config["callbacks"] or {})
    return [*keys, *_changed("eval.every_tokens", old.get("every_tokens"), new.get("every_tokens"))]


def _changed(path: str, old: object, new: object) -> list[str]:
    """Returns the keys in which two values differ; a key that only one of them has is named without those below it."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [key for name in names for key in _changed(f"{path}.{name}", old.get(name), new.get(name))]
    return [] if old == new else [path]


def changed_keys(old: Config, new: Config) -> dict[str, str]:
    """Returns `key: old -> new` for each key in which the identities of two configs differ, by key in order."""
    before, after = flatten(identity(old)), flatten(identity(new))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return {key: f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys}


def _is_below(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _has_double_weights(config: Config) -> bool:
    """Whether the weights and the optimizer state in checkpoints are in double precision."""
    return str(config["trainer"].get("precision")) == "64"
