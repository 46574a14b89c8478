"""What a run inherits from the run or model that it starts from.

A run that starts from another one inherits its model and tokenizer, unless the command line sets them. This module
imports no torch, so a config is complete, and can be checked and hashed, before anything is built.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError, Status, did_you_mean
from kleiber.config.foreign import check_foreign
from kleiber.config.provenance import is_set
from kleiber.config.stages import (
    has_pretrained_weights,
    is_chain,
    is_wrapped,
    stage_config,
    stage_names,
    text_settings,
    trains_tokenizer,
)
from kleiber.config.structure import check_structure
from kleiber.config.targets import signature
from kleiber.records import archive
from kleiber.records.catalog import TRAINED_HERE, Run, find_run, read_run
from kleiber.runs.defaults import with_defaults
from kleiber.runs.recorded_config import with_present_paths
from kleiber.types import Config, Json

Planned = Mapping[Path, Run]
FIXED_BY_WEIGHTS = ("depth", "width", "num_heads", "num_kv_heads", "tied", "qk_norm")  # keys of a model from a folder


def locate_stage(path: str) -> tuple[Path, str]:
    """Returns folder and stage of `RUN` or `RUN/STAGE`; for `RUN` alone its last finished stage.

    Raises ConfigError when the run does not exist, has no finished stage, or is only in runs.jsonl.gz, without weights.
    """
    run, stage = find_start(path)
    if run.archived is not None:
        unarchived = read_run(run.folder)
        if unarchived.status == Status.MISSING:
            raise ConfigError(
                f"init.path={path}: the weights of this run are missing, because {archive.NAME} stores no weights: "
                "copy the run's folder here, or train its study again with resume=never"
            )
        run = unarchived
    return run.folder, finished_stage(run, stage, path)


def planned_run(folder: Path, config: Config, overrides: Sequence[str]) -> Run:
    """Returns a run of a dry run as if it were finished, so that runs that start from it can be planned too."""
    stages: list[Json] = [{"name": name, "status": Status.FINISHED} for name in stage_names(config)]
    if trains_tokenizer(config):
        stages[0]["data"] = {"tokenizer_hash": TRAINED_HERE}
    lines = [line for line in overrides if not line.startswith("hydra.")]
    return Run(folder, Status.FINISHED, {"overrides": lines, "stages": stages}, {"config": dict(config), "rows": []})


def find_start(path: str, planned: Planned = MappingProxyType({})) -> tuple[Run, str | None]:
    """Returns the run that `RUN` or `RUN/STAGE` names, and the stage if it names one.

    The run may be in a folder, in runs.jsonl.gz, or one of the `planned` runs. Raises ConfigError when there is none.
    """
    place = Path(path).expanduser().absolute()
    for folder, stage in ((place, None), (place.parent, place.name)):
        run = planned.get(folder) or find_run(folder)
        if run is not None:
            return run, stage
    wrong = "is no run" if place.exists() else "does not exist"
    raise ConfigError(f"init.path={path} {wrong}: name a run or RUN/STAGE")


def finished_stage(run: Run, stage: str | None, path: str) -> str:
    """Returns `stage`, or the last finished stage when it is None. Raises ConfigError when it is not finished."""
    finished = [record["name"] for record in run.stages if record["status"] == Status.FINISHED]
    if not finished:
        raise ConfigError(
            f"init.path={path} must be a run with a finished stage, and this one has none (status {run.status}): "
            "finish it by running its command again"
        )
    if stage is not None and stage not in finished:
        near = did_you_mean(stage, finished)
        raise ConfigError(f"init.path={path}: {stage!r} must be a finished stage: {', '.join(finished)}.{near}")
    return stage or finished[-1]


def complete_config(
    config: Json,
    overrides: Sequence[str],
    planned: Planned = MappingProxyType({}),
    composer: Composer | None = None,
) -> Json:
    """Returns the config with the model and tokenizer of its start point, and with the defaults of fine-tuning.

    Keys that the command line sets are not changed. Raises ConfigError for a node of another form than completing
    needs, and when the start point does not exist.

    planned   runs of a dry run by folder (`planned_run`), from which this run may start
    composer  has composed the config: numbers that its files set do not change either, even where they are defaults
    """
    check_structure(config)
    set_keys = {override.lstrip("+~").partition("=")[0] for override in overrides}

    def is_key_set(key: str) -> bool:
        return key in set_keys or (composer is not None and is_set(composer, list(overrides), key))

    config = _with_start(_with_hf_tokenizer(_with_writers(config, planned), set_keys), set_keys, planned)
    try:
        return with_defaults(config, is_key_set)
    except ValueError as error:  # in the config.json of the model, from which its width is read
        raise ConfigError(str(error)) from error


def _with_start(config: Json, set_keys: set[str], planned: Planned) -> Json:
    init = config.get("init")
    if not isinstance(init, Mapping) or "_target_" not in init:
        return config
    kind = str(init["_target_"]).rsplit(".", 1)[-1]
    if kind == "Scratch" or not init.get("path"):
        return config
    if kind == "HF":
        return _with_hf_start(config, init, set_keys)
    run, stage = find_start(str(init["path"]), planned)
    stage = finished_stage(run, stage, str(init["path"]))
    recorded = _recorded_config(run, str(init["path"]))
    config = {**config, "init": {**init, "path": str(run.folder / stage)}}
    if kind == "Checkpoint":
        config = _with_model(config, recorded["model"], set_keys)
    text = text_settings(stage_config(recorded, stage)["data"])
    tokenizer = str(run.tokenizer or text.get("tokenizer", "bytes"))
    return _with_tokenizer(config, tokenizer, set_keys, text.get("separator"))


def _recorded_config(run: Run, path: str) -> Json:
    """Returns the config of a start point. Raises ConfigError where it is not of the form that inheriting needs.

    path  of the run, as `init` has it
    """
    try:
        check_structure(run.config, ("model", "data"))
    except ConfigError as error:
        raise ConfigError(f"init.path={path}: {run.folder / 'config.yaml'}: {error}") from None
    check_foreign({"model": run.config["model"]}, run.folder / "config.yaml")
    return with_present_paths(run.config, run.folder)


def _with_writers(config: Json, planned: Planned) -> Json:
    """The config with absolute paths of the stages of the runs that write the text of `data=generated`."""
    paths = config["data"].get("models")
    if not isinstance(paths, list):
        return config
    stages = []
    for path in map(str, paths):
        if (Path(path).expanduser() / "config.json").is_file():
            stages.append(str(Path(path).expanduser().absolute()))
            continue
        try:
            run, stage = find_start(path, planned)
            stages.append(str(run.folder / finished_stage(run, stage, path)))
        except ConfigError as error:
            raise ConfigError(str(error).replace("init.path=", "data.models=")) from None
    return {**config, "data": {**config["data"], "models": stages}}


def _with_hf_start(config: Json, init: Config, set_keys: set[str]) -> Json:
    """The config with the model and tokenizer of the Hugging Face folder that `init=hf` names.

    A folder of an architecture that the native Transformer does not have, such as BERT, becomes a wrapped model.
    """
    from kleiber.models.hf_config import hf_model_node, is_native, model_folder, wrapped_model_node

    if (kind := config["model"]["_target_"].rsplit(".", 1)[-1]) != "Transformer":
        wrapped = is_wrapped(config["model"])
        raise ConfigError(
            f"init=hf loads {init['path']} into the native Transformer, but the model is "
            + ("wrapped by model=hf" if wrapped else f"of the class {kind}")
            + ": set model=gpt"
            + (", or remove init and set model.path to the folder" if wrapped else "")
        )
    try:
        folder = model_folder(str(init["path"]), "init.path")
        if not is_native(folder) and not init.get("upstream"):
            config = _with_model({**config, "init": None}, wrapped_model_node(folder), set_keys)
            return _with_hf_tokenizer(config, set_keys)
        node = hf_model_node(folder, config["model"]["context"] if "model.context" in set_keys else None)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in FIXED_BY_WEIGHTS:
        asked = config["model"].get(name)
        if f"model.{name}" in set_keys and asked is not None and asked != node[name]:
            raise ConfigError(f"model.{name}={asked} must be {node[name]}, that of {folder}: leave the key out")
    tokenizer = text_settings(config["data"]).get("tokenizer")
    if _sets("tokenizer", set_keys) and tokenizer in ("bytes", "bpe") and (folder / "tokenizer.json").is_file():
        raise ConfigError(f"data.tokenizer={tokenizer} must be that of {folder}: leave the key out")
    config = _with_model({**config, "init": {**init, "path": str(folder)}}, node, set_keys)
    return _with_tokenizer(config, str(folder.absolute()), set_keys)


def _with_hf_tokenizer(config: Json, set_keys: set[str]) -> Json:
    """The config of a wrapped, pretrained Hugging Face model with the tokenizer of that model."""
    model = config["model"]
    if not has_pretrained_weights(model):
        return config
    from kleiber.models.hf_config import hf_tokenizer, model_folder

    if _sets("tokenizer", set_keys) or not _has_tokenizer(config["data"]):
        return config
    return _with_tokenizer(config, hf_tokenizer(model_folder(str(model["path"])).absolute()), set_keys)


def _with_model(config: Json, model: Config, set_keys: set[str]) -> Json:
    """The config with another model, in which single keys that the command line sets keep their values."""
    if any(key == "model" or key.startswith("model/") for key in set_keys):
        return config
    inherited = copy.deepcopy(dict(model))
    for key in set_keys:
        if key.startswith("model."):
            _copy_key(config["model"], inherited, key.split(".")[1:])
    return {**config, "model": inherited}


def _copy_key(source: Config, target: Json, keys: Sequence[str]) -> None:
    """Copies the value at a nested key, such as ("mlp", "k"), from one dictionary to another.

    Removes the key where the source has none, because the command line deletes it.
    """
    *outer, last = keys
    for key in outer:
        if not isinstance(target.get(key), dict):
            target[key] = {}
        source, target = source.get(key) or {}, target[key]
    if last in source:
        target[last] = copy.deepcopy(source[last])
    else:
        target.pop(last, None)


def _with_tokenizer(config: Json, name: str, set_keys: set[str], separator: object = None) -> Json:
    """The config with another tokenizer, in its own data and in the data of the stages of a chain.

    separator  `data.separator` of the start point, which is inherited where the command line sets none
    """
    if _sets("tokenizer", set_keys):
        return config
    keys: Json = {"tokenizer": name}
    if separator is not None and not _sets("separator", set_keys):
        keys["separator"] = separator
    config = {**config, "data": _data_with_tokenizer(config["data"], keys)}
    if not is_chain(config):
        return config
    chain = {stage: _stage_with_tokenizer(node, keys) for stage, node in config["stages"]["chain"].items()}
    return {**config, "stages": {**config["stages"], "chain": chain}}


def _stage_with_tokenizer(node: Config | None, keys: Config) -> Config | None:
    """The node of a stage with the tokenizer, where its data has a `_target_` of its own and sets no tokenizer."""
    data = (node or {}).get("data")
    if node is None or not isinstance(data, Mapping) or "_target_" not in data or "tokenizer" in text_settings(data):
        return node
    return {**node, "data": _data_with_tokenizer(data, keys)}


def _data_with_tokenizer(data: Config, keys: Config) -> Config:
    """A node of data with the tokenizer, and the separator if there is one, of a start point.

    Data that is made of other data, and has no tokenizer of its own, gets them in the node of that data.
    """
    if not _has_tokenizer(data):
        return data
    parameters = signature(str(data["_target_"])).parameters
    if "tokenizer" not in parameters:
        return {**data, "data": _data_with_tokenizer(data["data"], keys)}
    inherited = {key: value for key, value in keys.items() if key in parameters}
    return {**data, **inherited, **({"vocab_size": None} if "vocab_size" in data else {})}


def _has_tokenizer(data: Config) -> bool:
    """Whether the tokenizer of a data set, or of the data that it is made of, can be set; triggers are bytes."""
    target, text = str(data["_target_"]), data.get("data")
    if "tokenizer" in signature(target).parameters:
        return True
    return isinstance(text, Mapping) and not target.endswith(".Trigger") and _has_tokenizer(text)


def _sets(key: str, set_keys: set[str]) -> bool:
    """Whether the command line sets a key of the data, or of the data that it is made of."""
    return any(re.fullmatch(rf"data(\.data)*\.{key}", each) for each in set_keys)
