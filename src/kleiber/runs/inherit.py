"""What a run takes over from the run or model that it starts from, and its learning rate where none is set.

A run that starts from another one inherits the model and the tokenizer, unless the command line sets them. Imports no
torch, so a config is complete, and can be checked and hashed, before anything is built.

A learning rate is set by the width of the model where muP's default does not serve: in the standard parametrization the
best rate falls with the width, and trained weights need a smaller rate than new ones (at muP's .02 an imported model
forgets within five steps). A rate in the config is never changed.

From scratch .3 / width: within 30 % of the best at widths 32, 64 and 128 (.0072, .0048, .0023; study=mup_transfer), and
3.9e-4 at width 768, where GPT-3's smallest took 6e-4 (Brown et al. 2020, arXiv:2005.14165, table 2.1). For fine-tuning
.05 / width: 6.5e-5 at 768 and 1.2e-5 at 4096, beside the 2e-5 to 5e-5 of BERT (Devlin et al. 2018, arXiv:1810.04805,
A.3) and the 2e-5 of a Llama of 7B (Touvron et al. 2023, arXiv:2307.09288, 3.1). LoRA takes ten
times as much, as in Biderman et al. 2024 (arXiv:2405.09673): 6.5e-4 at 768, where Hu et al. 2021 (arXiv:2106.09685,
table 9) took 4e-4 to 5e-4. DoRA takes as much as LoRA.

DPO and similar objectives, which a large step moves far from the reference, take a tenth of these and of muP's:
1.2e-6 at 4096, beside the 1e-6 of Rafailov et al. 2023 (arXiv:2305.18290, appendix B).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kleiber.config.errors import ConfigError, Status, did_you_mean
from kleiber.config.signatures import class_attribute, signature
from kleiber.config.stages import built_trained, from_weights, is_chain, stage_config, stage_names, trains_tokenizer
from kleiber.records import archive
from kleiber.records.catalog import TRAINED_HERE, Run, find_run, read_run
from kleiber.types import Config

Planned = Mapping[Path, Run]


def locate(path: str) -> tuple[Path, str]:
    """Folder and stage of `RUN` or `RUN/STAGE`; of a run alone, its last finished stage.

    Raises ConfigError where there is no such run, nothing in it is finished, or runs.jsonl.gz alone holds it.
    """
    run, stage = start_point(path)
    if run.archived is not None:
        here = read_run(run.folder)
        if here.status == Status.MISSING:
            raise ConfigError(
                f"init.path={path}: the weights of that run are not here, {archive.NAME} keeps its numbers alone; copy "
                "its folder here, or train its study again with resume=never"
            )
        run = here
    return run.folder, finished_stage(run, stage, path)


def planned_run(folder: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> Run:
    """A run of a dry run: nothing of it is there, and it counts as finished, so that what starts from it is planned."""
    stages: list[dict[str, Any]] = [{"name": name, "status": Status.FINISHED} for name in stage_names(config)]
    if trains_tokenizer(config):
        stages[0]["data"] = {"tokenizer_hash": TRAINED_HERE}
    lines = [line for line in overrides if not line.startswith("hydra.")]
    return Run(folder, Status.FINISHED, {"overrides": lines, "stages": stages}, {"config": dict(config), "rows": []})


def start_point(path: str, planned: Planned = MappingProxyType({})) -> tuple[Run, str | None]:
    """The run of `RUN` or `RUN/STAGE`, which may be archived or `planned` alone, and the stage where one is named.

    Raises ConfigError where there is no such run.
    """
    told = Path(path).expanduser().absolute()
    for folder, stage in ((told, None), (told.parent, told.name)):
        run = planned.get(folder) or find_run(folder)
        if run is not None:
            return run, stage
    raise ConfigError(f"init.path={path}: no run is there (neither it nor its parent has a config.yaml)")


def finished_stage(run: Run, stage: str | None, path: str) -> str:
    """A stage that is finished: the one that is named, or the last. Raises ConfigError where it is none."""
    finished = [one["name"] for one in run.stages if one["status"] == Status.FINISHED]
    if not finished:
        raise ConfigError(f"init.path={path}: no stage of that run is finished (it is {run.status})")
    if stage is not None and stage not in finished:
        raise ConfigError(f"init.path={path}: no finished stage {stage!r}.{did_you_mean(stage, finished)} {finished}")
    return stage or finished[-1]


def adopt(config: dict[str, Any], overrides: Sequence[str], planned: Planned = MappingProxyType({})) -> dict[str, Any]:
    """The config with what its start point decides: the model, the tokenizer and, in the standard parametrisation, the
    learning rate, unless the command line names them.

    planned  runs by folder that a dry run has planned (`planned_run`)
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    config = _started(_wrapped(config, given), given, planned)
    return config if "optimizer.lr" in given else _with_rate(config)


def _started(config: dict[str, Any], given: set[str], planned: Planned) -> dict[str, Any]:
    init = config.get("init")
    if not isinstance(init, Mapping) or "_target_" not in init:
        return config
    kind = str(init["_target_"]).rsplit(".", 1)[-1]
    if kind == "Scratch" or not init.get("path"):
        return config
    if kind == "HF":
        from kleiber.models.hf_config import hf_model_node, model_folder

        if config["model"]["_target_"].rsplit(".", 1)[-1] != "Transformer":
            raise ConfigError(
                f"init=hf reads {init['path']} into our own model, and model=hf wraps a folder as it is: leave out "
                "init and name the folder by model.path, or take model=gpt"
            )
        try:
            folder = model_folder(str(init["path"]), "init.path")
            node = hf_model_node(folder, config["model"]["context"] if "model.context" in given else None)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        config = _with_model({**config, "init": {**init, "path": str(folder)}}, node, given)
        return _with_tokenizer(config, str(folder.absolute()), given)
    run, stage = start_point(str(init["path"]), planned)
    stage = finished_stage(run, stage, str(init["path"]))
    config = {**config, "init": {**init, "path": str(run.folder / stage)}}
    if kind == "Checkpoint":
        config = _with_model(config, run.config["model"], given)
    own = stage_config(run.config, stage)["data"]
    return _with_tokenizer(config, str(run.tokenizer or own.get("tokenizer", "bytes")), given)


def _with_rate(config: dict[str, Any]) -> dict[str, Any]:
    try:
        rate = usual_rate(config, trained=built_trained(config["model"]) or from_weights(config))
    except ValueError as error:  # of the model's own config, which its width is read from
        raise ConfigError(str(error)) from error
    return config if rate is None else {**config, "optimizer": {**config["optimizer"], "lr": rate}}


def _wrapped(config: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """A trained model of Hugging Face's, wrapped as it is, reads the ids of its own tokenizer."""
    model = config["model"]
    if not model["_target_"].endswith(".HFModel") or model.get("weights", "pretrained") == "random":
        return config
    from kleiber.models.hf_config import hf_tokenizer, model_folder

    if "data.tokenizer" in given or "tokenizer" not in signature(str(config["data"]["_target_"])).parameters:
        return config
    return _with_tokenizer(config, hf_tokenizer(model_folder(str(model["path"])).absolute()), given)


def _with_model(config: dict[str, Any], model: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    if any(key == "model" or key.startswith("model/") for key in given):
        return config
    adopted = copy.deepcopy(dict(model))
    for key in given:
        if key.startswith("model."):
            _set(adopted, key.split(".")[1:], _get(config, key.split(".")))
    return {**config, "model": adopted}


def _with_tokenizer(config: dict[str, Any], name: str, given: set[str]) -> dict[str, Any]:
    if "data.tokenizer" in given:
        return config
    config = {**config, "data": _reading(config["data"], name)}
    if not is_chain(config):
        return config
    chain = {stage: _stage_reading(own, name) for stage, own in config["stages"]["chain"].items()}
    return {**config, "stages": {**config["stages"], "chain": chain}}


def _stage_reading(own: Mapping[str, Any] | None, name: str) -> Any:
    """A stage whose data is a node of its own reads the start's tokenizer too, unless it names one."""
    data = (own or {}).get("data")
    if own is None or not isinstance(data, Mapping) or "_target_" not in data or "tokenizer" in data:
        return own
    return {**own, "data": _reading(data, name)}


def _reading(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if "tokenizer" not in signature(str(data["_target_"])).parameters:
        return data
    return {**data, "tokenizer": name, **({"vocab_size": None} if "vocab_size" in data else {})}


def _get(node: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        node = node[key]
    return json.loads(json.dumps(node))


def _set(node: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    node[keys[-1]] = value


MUP = 0.02  # AdamW's default, in whose units the numbers below are
SCRATCH, TRAINED = 0.3, 0.05
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # what config.json files call it


def usual_rate(config: Mapping[str, Any], trained: bool) -> float | None:
    """The rate of a config, to two digits; None where one is written, or where the optimizer's default serves.

    trained  whether the run begins with trained weights
    """
    node, usual = config["model"], _default(config["optimizer"])
    if usual is None:
        return None
    share = _rate_factor(config.get("objective"))
    wrapped = str(node["_target_"]).endswith(".HFModel")
    if not wrapped and not str((node.get("parametrization") or {}).get("_target_")).endswith(
        ".StandardParametrization"
    ):
        return float(f"{usual * share:.1e}") if share < 1 else None
    width = _wrapped_width(node) if wrapped else node.get("width") or node["aspect"] * node["depth"]
    if not isinstance(width, int) or width < 1:  # which the check refuses
        return None
    rate = share * (TRAINED if trained else SCRATCH) * _rate_factor(config.get("adapter")) / width
    return float(f"{rate * usual / MUP:.1e}")


def _rate_factor(node: Config | None) -> float:
    """The `learning_rate_factor` of the class of an objective or an adapter; 1 where there is none."""
    return 1.0 if not node else class_attribute(str(node["_target_"]), "learning_rate_factor")


def _default(optimizer: Any) -> float | None:
    """The rate that an optimizer has by default, where the config holds no other."""
    if not isinstance(optimizer, Mapping) or not str(optimizer.get("_target_")).startswith("kleiber."):
        return None
    told = signature(str(optimizer["_target_"])).parameters.get("lr")
    return told.default if told is not None and optimizer.get("lr", told.default) == told.default else None


def _wrapped_width(node: Mapping[str, Any]) -> int:
    """Of a Hugging Face model: as the node says, as its folder does, or as its kind does by default."""
    from kleiber.models.hf_config import model_folder, read_config

    own, name = node.get("config") or {}, str(node["path"])
    if node.get("weights", "pretrained") == "random" and not Path(name).expanduser().is_dir():
        from kleiber.models.hf_config import configuration

        own = configuration(name, "random", own)[0].to_dict()
    known = {**read_config(model_folder(name)), **own} if not any(key in own for key in WIDTHS) else own
    return int(next(known[key] for key in WIDTHS if key in known))
