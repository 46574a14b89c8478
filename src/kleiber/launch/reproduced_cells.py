"""The cells of `kleiber reproduce`: recorded runs with their configs, in an order in which bases come first."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kleiber.config.check import check
from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError
from kleiber.config.foreign import check_foreign
from kleiber.config.model_size import check_memory
from kleiber.config.nested import map_strings
from kleiber.config.permissions import permitted_data
from kleiber.launch.cell import Cell
from kleiber.launch.sweep import referenced_runs
from kleiber.records.catalog import Run
from kleiber.records.files import read_json
from kleiber.records.folder import identity
from kleiber.records.regular_files import DamagedFile, path_inside
from kleiber.runs.recorded_config import with_paths_to_study
from kleiber.types import Config, Json


def in_rounds(chosen: Sequence[Run], finished: Mapping[str, Run], home: Path) -> list[list[Run]]:
    """Returns the runs in an order in which they can be trained; those of one round do not need each other.

    A run that another one starts from is trained again too if its weights are gone.
    """
    rounds, needed = [list(chosen)], list(chosen)
    while needed := [base for run in needed for base in missing_bases(run, finished, home)]:
        needed = list({run.name: run for run in needed}.values())
        names = {run.name for run in needed}
        rounds = [needed, *([run for run in runs if run.name not in names] for runs in rounds)]
    return [runs for runs in rounds if runs]


def missing_bases(run: Run, finished: Mapping[str, Run], home: Path) -> list[Run]:
    """Returns the runs of the same folder that `run` starts from, and whose weights are gone."""
    names = referenced_runs(with_paths_to_study(run.config, run.folder), f"{home.absolute()}/")
    return [finished[name] for name in sorted(names) if name in finished and not weights_hashes(finished[name])]


def parse_settings(overrides: Sequence[str]) -> Json:
    """Returns the values of KEY=VALUE by key. Raises ConfigError for text of another form."""
    parsed = Composer("train").parse(list(overrides))
    wrong = next((o for o in parsed if o.is_sweep_override() or o.is_delete() or "/" in o.key_or_group), None)
    if wrong is not None:
        raise ConfigError(f"{wrong.input_line} must be KEY=VALUE, such as callbacks.checkpoints.remote=null")
    return {override.key_or_group: override.value() for override in parsed}


def node_with(config: Config, key: str) -> Json | None:
    """Returns the node of a config that has the last part of a dotted key; None where there is none."""
    *outer, last = key.split(".")
    node: object = config
    for name in outer:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) and last in node else None


def with_settings(config: Json, settings: Json) -> Json:
    """Returns a recorded config with other values of the keys that it has.

    Raises ConfigError for a key that can change the result.
    """
    changed = copy.deepcopy(config)
    for key, value in settings.items():
        if (node := node_with(changed, key)) is not None:
            node[key.rpartition(".")[2]] = value
    if identity(changed) != identity(config):
        names = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ConfigError(f"{names} changes the result: reproduce trains recorded configs, and kleiber train others")
    return changed


def cell_of(run: Run, home: Path, out: Path, rounds: Sequence[Sequence[Run]], settings: Json) -> Cell:
    """Returns the cell that trains a run again, in a folder of the same name in `out`, without loggers.

    It uses as many CPU threads as the recorded run, because sums of floats depend on their number. Raises ConfigError
    if the recorded config does not pass the check of a command line.

    settings  values of the command line by key
    """
    again = {base.name for runs in rounds for base in runs if not weights_hashes(base)}
    config = map_strings(
        with_paths_to_study(run.config, run.folder), lambda text: in_new_folder(text, home.absolute(), out, again)
    )
    config |= {"root": str(out.parent), "name": out.name, "resume": "auto", "dry_run": False}
    config |= {"logger": {}, "launcher": {"_target_": "kleiber.launch.Process"}, "study": None, "design": None}
    config |= {"allow_data": permitted_data() or None}  # in place of what the recorded command allowed
    trainer = dict(config.get("trainer") or {})
    if trainer.get("threads") is None and "accelerator" in trainer:
        trainer["threads"] = (run.summary.get("machine") or {}).get("threads")
    config["trainer"] = trainer
    try:
        config = with_settings(config, settings)
        check(config)
        check_memory(config)
    except ConfigError as error:
        raise ConfigError(f"the recorded config of {run.folder}: {error}") from None
    check_foreign(config, run.folder / "config.yaml", list(settings))
    return Cell(out / run.name, config, run.overrides)


def in_new_folder(text: str, home: Path, out: Path, names: set[str]) -> str:
    """Returns a path through one of the runs `names` in `home`, moved to `out`; any other text as it is."""
    below = text.removeprefix(f"{home}/")
    return f"{out}/{below}" if text != below and below.split("/")[0] in names else text


def weights_hashes(run: Run) -> dict[str, str]:
    """Returns the sha256 of the final weights of each stage, as their checkpoints note it; none where they are gone."""
    hashes = {}
    for stage in run.stages:
        if not stage.get("checkpoint"):
            continue
        with suppress(DamagedFile, KeyError, TypeError):
            meta = path_inside(run.folder, stage["checkpoint"]) / "meta.json"
            if meta.is_file() and meta.with_name("model.safetensors").is_file():
                hashes[stage["name"]] = str(read_json(meta)["sha256"]["model.safetensors"])
    return hashes
