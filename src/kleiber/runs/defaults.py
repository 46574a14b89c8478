"""Defaults that depend on the model, the start point and the objective: the learning rate, and those of fine-tuning.

The default learning rate depends on the width of the model where muP's default does not serve: in the standard
parametrization the best rate falls with the width, and trained weights need a smaller rate than new ones (at muP's 0.02
an imported model forgets within five steps). A rate that an override or a file of the user sets is never changed. Each
stage of a chain has the default of its own objective, adapter and start. The defaults are:

- From scratch 0.3 / width: within 30% of the best at widths 32, 64 and 128 (0.0072, 0.0048 and 0.0023, by
  study=mup_transfer). At width 768 this is 3.9e-4, where the smallest GPT-3 took 6e-4 (Brown et al. 2020,
  arXiv:2005.14165, table 2.1).
- For fine-tuning 0.035 / width, whose largest loss to the best rate of a task was least (docs/results/fine_tuning.md):
  4.6e-5 at width 768 and 8.5e-6 at 4096. BERT took 2e-5 to 5e-5 (Devlin et al. 2018, arXiv:1810.04805, A.3), and
  Llama 7B took 2e-5 (Touvron et al. 2023, arXiv:2307.09288, 3.1).
- For LoRA and DoRA ten times as much, as in Biderman et al. 2024 (arXiv:2405.09673): 4.6e-4 at width 768, where Hu et
  al. 2021 (arXiv:2106.09685, table 9) took 4e-4 to 5e-4.
- For DPO and similar objectives, which a large step moves far from the reference, a tenth of these rates and of muP's:
  8.5e-7 at width 4096. Rafailov et al. 2023 (arXiv:2305.18290, appendix B) took 1e-6.

An objective has further defaults of its own for fine-tuning an imported model: `Objective.fine_tuning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from kleiber.config.stages import has_pretrained_weights, is_chain, is_wrapped, stage_configs, starts_from_weights
from kleiber.config.targets import argument, class_attribute, signature
from kleiber.types import Config, Json

MUP_RATE = 0.02  # AdamW's default; other optimizers scale the rates below by their default over this one
SCRATCH, TRAINED = 0.3, 0.035  # rate times width, for new and for trained weights
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # names of the width in config.json files


def with_defaults(config: Json, is_set: Callable[[str], bool]) -> Json:
    """Returns the config with the default learning rates and those of fine-tuning; values that are set stay.

    is_set  whether the user sets the value at a key; asked only where that is the default of its class

    Raises ValueError where the config.json of the model, from which its width is read, is wrong.
    """
    config = _with_fine_tuning(config, is_set)
    changed = _with_stage_rates(config) if is_chain(config) else _with_rate(config)
    return config if changed is config or is_set("optimizer.lr") else changed


def changed_defaults(before: Config, after: Config) -> list[str]:
    """Returns `key=value` for every number that `with_defaults` has changed.

    before, after  configs before and after it
    """
    groups = {group: (before[group], after[group]) for group in ("optimizer", "schedule", "objective")}
    if is_chain(after):
        stages = [config["stages"]["chain"] for config in (before, after)]
        for name in stages[1]:
            nodes = [((chain[name] or {}).get("optimizer") or {}) for chain in stages]
            groups[f"stages.chain.{name}.optimizer"] = (nodes[0], nodes[1])
    return [
        f"{group}.{name}={value:g}"
        for group, (old, new) in groups.items()
        for name, value in new.items()
        if isinstance(value, float) and math.isfinite(value) and old.get(name) != value
    ]


def default_learning_rate(config: Config, trained: bool) -> float | None:
    """Returns the default learning rate of a config, rounded to two digits.

    Returns None when the config sets a rate, or when the default of the optimizer serves.

    trained  whether the run starts from trained weights
    """
    node, optimizer_rate = config["model"], _optimizer_rate(config["optimizer"])
    if optimizer_rate is None:
        return None
    factor = _rate_factor(config.get("objective"))
    if not in_standard_parametrization(node):
        return float(f"{optimizer_rate * factor:.1e}") if factor < 1 else None
    width = _hf_width(node) if is_wrapped(node) else _width(node)
    if not isinstance(width, int) or width < 1:  # the check of the config refuses it later
        return None
    rate = factor * (TRAINED if trained else SCRATCH) * _rate_factor(config.get("adapter")) / width
    return float(f"{rate * optimizer_rate / MUP_RATE:.1e}")


def _with_rate(config: Json) -> Json:
    rate = default_learning_rate(config, starts_trained(config))
    return config if rate is None else {**config, "optimizer": {**config["optimizer"], "lr": rate}}


def _with_stage_rates(config: Json) -> Json:
    """The config of a chain with the default rate of each stage that sets none.

    The rate of the first stage is that of the run, which the others have unless their default is another one.
    """
    chain, stages = config["stages"]["chain"], stage_configs(config)
    optimizers = {name: (node or {}).get("optimizer") or {} for name, node in chain.items()}
    trained = {name: bool(number) or starts_trained(config) for number, name in enumerate(stages)}
    rates = {
        name: default_learning_rate(stage, trained[name])
        for name, stage in stages.items()
        if "lr" not in optimizers[name]
    }
    if not any(rates.values()):
        return config
    default = (config["optimizer"] or {}).get("lr")
    of_run = rates.get(next(iter(stages))) or default
    changed = {}
    for name, rate in rates.items():
        has_other_class = "_target_" in optimizers[name]
        wanted = rate if has_other_class else rate or default
        if wanted is not None and (has_other_class or wanted != of_run):
            changed[name] = {**(chain[name] or {}), "optimizer": {**optimizers[name], "lr": wanted}}
    optimizer = config["optimizer"] if of_run == default else {**config["optimizer"], "lr": of_run}
    return {**config, "optimizer": optimizer, "stages": {**config["stages"], "chain": {**chain, **changed}}}


def starts_trained(config: Config) -> bool:
    """Whether a run starts from trained weights: those of its `init`, or of a wrapped model."""
    return has_pretrained_weights(config["model"]) or starts_from_weights(config)


def _with_fine_tuning(config: Json, is_set: Callable[[str], bool]) -> Json:
    """The config with the defaults that the objective has where it fine-tunes a model that kleiber did not pre-train.

    They replace the defaults of classes; a value that the config sets stays.
    """
    if not starts_trained(config) or not in_standard_parametrization(config["model"]):
        return config
    for key, value in (class_attribute(str(config["objective"]["_target_"]), "fine_tuning") or {}).items():
        group, name = key.split(".")
        node = config[group]
        parameter = signature(str(node["_target_"])).parameters.get(name)
        if parameter is None or node.get(name, parameter.default) != parameter.default or is_set(key):
            continue
        config = {**config, group: {**node, name: value}}
    return config


def in_standard_parametrization(model: Config) -> bool:
    """Whether the best learning rate of a model depends on its width."""
    parametrization = str((model.get("parametrization") or {}).get("_target_"))
    return is_wrapped(model) or parametrization.endswith(".StandardParametrization")


def _rate_factor(node: Config | None) -> float:
    """The `learning_rate_factor` of the class of an objective or an adapter; 1 where there is none."""
    return 1.0 if not node else class_attribute(str(node["_target_"]), "learning_rate_factor")


def _optimizer_rate(optimizer: object) -> float | None:
    """The default rate of an optimizer; None when the config sets another one."""
    if not isinstance(optimizer, Mapping) or not str(optimizer.get("_target_")).startswith("kleiber."):
        return None
    parameter = signature(str(optimizer["_target_"])).parameters.get("lr")
    if parameter is None or optimizer.get("lr", parameter.default) != parameter.default:
        return None
    return parameter.default


def _width(node: Config) -> object:
    """The width of a Transformer's node; None where its node does not tell."""
    aspect, depth = argument(node, "aspect"), argument(node, "depth")
    of_aspect = aspect * depth if isinstance(aspect, int) and isinstance(depth, int) else None
    return node.get("width") or of_aspect


def _hf_width(node: Config) -> int:
    """The width of a Hugging Face model: that of its node, of its folder, or the default of its model type."""
    from kleiber.models.hf_config import model_folder, read_config

    settings, name = node.get("config") or {}, str(node["path"])
    if node.get("weights", "pretrained") == "random" and not Path(name).expanduser().is_dir():
        from kleiber.models.hf_config import configuration

        settings = configuration(name, "random", settings)[0].to_dict()
    if not any(key in settings for key in WIDTHS):
        settings = {**read_config(model_folder(name)), **settings}
    return int(next(settings[key] for key in WIDTHS if key in settings))
