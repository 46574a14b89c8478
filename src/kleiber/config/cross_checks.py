"""Checks that the values of different keys are compatible; each error names the keys. Imports no torch.

Some of Lightning's callbacks cannot work in a run, and an error names what does the same here:
kleiber makes its optimizer steps, validations, checkpoints and progress lines without Lightning's, and has no epochs.
Whether there is a metric that a callback monitors is checked when a run is planned (`kleiber.runs.run`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from kleiber.config.errors import ConfigError
from kleiber.config.layer_checks import NAMES, attention_kinds, check_layers
from kleiber.config.model_size import RECURRENT
from kleiber.config.stage_checks import adds_weights
from kleiber.config.stages import check_name, is_wrapped, quantity
from kleiber.config.targets import argument, class_attribute
from kleiber.config.url_secrets import hide_secrets, open_file_system
from kleiber.types import Config

LIGHTNING = "lightning.pytorch.callbacks."
CHECKPOINTS = (
    "callbacks.checkpoints.every=100 saves checkpoints every 100 steps, and callbacks.checkpoints.keep=2 keeps 2"
)
PROGRESS = "callbacks.progress prints the progress"
SUMMARY = "dry_run=true prints the parameters, and `kleiber config` the model"
AVERAGE = "callbacks=ema averages the weights"
FREEZE = "adapter=freeze trains a part of the weights"
# By name of the class: what to set in place of a callback of Lightning that cannot work in a run.
REPLACEMENTS = {
    "ModelCheckpoint": CHECKPOINTS,
    "Checkpoint": CHECKPOINTS,
    "OnExceptionCheckpoint": CHECKPOINTS,
    "ProgressBar": PROGRESS,
    "RichProgressBar": PROGRESS,
    "TQDMProgressBar": PROGRESS,
    "ModelSummary": SUMMARY,
    "RichModelSummary": SUMMARY,
    "StochasticWeightAveraging": AVERAGE,
    "WeightAveraging": AVERAGE,
    "EMAWeightAveraging": AVERAGE,
    "GradientAccumulationScheduler": "batch.micro sets how many of the rows of a step a device takes at once",
    "BatchSizeFinder": "batch.micro=auto takes as many rows at once as fit in memory",
    "LearningRateFinder": "-m optimizer.lr=0.005,0.01,0.02 compares learning rates",
    "BaseFinetuning": FREEZE,
    "BackboneFinetuning": FREEZE,
    "ModelPruning": "it acts at the end of an epoch, which runs do not have",
    "BasePredictionWriter": "`kleiber eval` writes what a model predicts",
    "SpikeDetection": "callbacks.stability.policy=skip or rollback acts on spikes of the loss",
}


def check_lightning_callbacks(callbacks: object) -> None:
    """Raises ConfigError for a callback of Lightning that cannot work, with what to set in its place."""
    for key, node in callbacks.items() if isinstance(callbacks, Mapping) else ():
        target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
        name = target.rpartition(".")[2]
        if not target.startswith(LIGHTNING):
            continue
        if name in REPLACEMENTS:
            raise ConfigError(
                f"callbacks.{key}={name} of Lightning does not work here, remove it: {REPLACEMENTS[name]}"
            )
        if name == "EarlyStopping":
            _check_early_stopping(key, node)


def _check_early_stopping(key: str, node: Config) -> None:
    if node.get("check_on_train_epoch_end"):
        raise ConfigError(
            f"callbacks.{key}.check_on_train_epoch_end=true must be false, because runs have no epochs: EarlyStopping "
            "acts at validations (eval.every_steps), and budget.stop_at_loss ends training at a loss"
        )


def check_compatibility(config: Config) -> None:
    """Raises ConfigError for values that are valid alone and contradict each other."""
    _check_task_name(config["data"])
    check_layers(config["model"])
    _check_batch(config)
    _check_stages(config)
    _check_next_token(config)
    _check_future(config)
    _check_prefix(config)
    _check_pooling(config)
    _check_wise(config)
    _check_replay(config)
    _check_l2sp_strength(config)
    _check_answers(config)
    _check_reference(config)
    _check_packing(config)
    _check_weights(config)
    _check_rollback(config)
    _check_privacy(config)
    _check_selective(config)
    _check_streaming(config)
    _check_loggers(config.get("logger") or {})
    _check_remote((config.get("callbacks") or {}).get("checkpoints"))
    check_lightning_callbacks(config.get("callbacks"))


def _check_selective(config: Config) -> None:
    """Refuses to keep the products of blocks where they are not operations of their own."""
    trainer, target = config["trainer"], str(config["model"]["_target_"])
    if argument(trainer, "checkpoint_activations") != "selective":
        return
    refused = {
        "trainer.compile=true": argument(trainer, "compile"),
        "model=lstm": target == RECURRENT,
    }
    for key, chosen in refused.items():
        if chosen:
            raise ConfigError(
                f"trainer.checkpoint_activations=selective does not work with {key}, whose kernels contain the matrix "
                "products: set trainer.checkpoint_activations=true, which recomputes whole blocks"
            )


def _check_privacy(config: Config) -> None:
    """Refuses with DP-SGD what reads other data, or what makes a step depend on more than its clipped gradients."""
    if not config.get("privacy"):
        return
    stability = (config.get("callbacks") or {}).get("stability")
    policy, nonfinite = (argument(stability, name) if stability else None for name in ("policy", "nonfinite"))
    methods = _methods_with_earlier_tasks(config)
    refused = {
        f"trainer.devices={argument(config['trainer'], 'devices')}": (argument(config["trainer"], "devices") or 1) > 1,
        f"retention=[{','.join(methods)}]": methods,
        "stages": config.get("stages"),
        "callbacks.stability.policy": policy not in (None, "tell"),
        "callbacks.stability.nonfinite=skip": nonfinite == "skip",
    }
    for key, chosen in refused.items():
        if chosen:
            raise ConfigError(f"{key} does not work with privacy=dp_sgd, whose epsilon would be wrong: remove it")
    if find_spec("opacus") is None:
        raise ConfigError("privacy=dp_sgd needs opacus, which is not installed: pip install 'kleiber[privacy]'")


def _check_streaming(config: Config) -> None:
    """Refuses what needs an index of all samples of a text that is read on the way, also of an earlier stage."""
    stages = ((config.get("stages") or {}).get("chain") or {}).values()
    data = [config["data"], *(stage.get("data") for stage in stages if isinstance(stage, Mapping))]
    epochs, methods = config["budget"].get("epochs"), _methods_with_earlier_tasks(config)
    evals = config.get("evals") or {}
    refused = {
        f"budget.epochs={epochs}": (epochs, "set budget.tokens or budget.steps"),
        "privacy=dp_sgd": (config.get("privacy"), "remove it"),
        "evals=memorization": ("memorization" in evals, "remove it"),
        "evals.retrieval.store=null": (evals.get("retrieval") and not evals["retrieval"].get("store"), "name texts"),
        f"retention=[{','.join(methods)}]": (methods, "take l2sp or wise"),
    }
    for key, (chosen, fix) in refused.items():
        if chosen and any(isinstance(node, Mapping) and node.get("streaming") for node in data):
            raise ConfigError(f"{key} needs all samples, which data.streaming=true never has at once: {fix}")


def _methods_with_earlier_tasks(config: Config) -> list[str]:
    """Returns the keys of the retention methods that read tasks of earlier stages."""
    methods = {key: node["_target_"] for key, node in (config.get("retention") or {}).items() if node}
    return sorted(key for key, target in methods.items() if class_attribute(target, "reads_earlier_tasks"))


def _check_loggers(loggers: Config) -> None:
    for key, node in loggers.items():
        package = class_attribute(str(node["_target_"]), "package") if isinstance(node, Mapping) else None
        if package is not None and find_spec(package) is None:
            raise ConfigError(
                f"logger.{key} needs the package {package}, which is not installed: pip install 'kleiber[{package}]'"
            )


def _check_remote(checkpoints: object) -> None:
    url = checkpoints.get("remote") if isinstance(checkpoints, Mapping) else None
    try:
        _ = url and open_file_system(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"callbacks.checkpoints.remote={url} cannot be opened: {hide_secrets(str(error))}") from None


def _check_task_name(data: Config) -> None:
    """The name of a task is part of the names of files, such as classes/<task>.json."""
    if data.get("name") is not None:
        check_name("data.name", data["name"])
    if isinstance(data.get("data"), Mapping):  # a data set made of another one
        _check_task_name(data["data"])


def _check_batch(config: Config) -> None:
    tokens, context = quantity(config["batch"]["tokens"]), argument(config["model"], "context")
    devices = argument(config["trainer"], "devices") or 1
    if context is None:
        return
    if tokens % context:
        near = max(1, round(tokens / context)) * context
        raise ConfigError(
            f"batch.tokens={config['batch']['tokens']} must be a multiple of model.context={context}, such as {near}"
        )
    rows = int(tokens // context)
    sides = class_attribute(config["data"]["_target_"], "sides") or 1
    unit = "pairs of answers" if sides > 1 else "sequences"
    if rows % (sides * devices):
        near = -(-rows // (sides * devices)) * sides * devices * context
        raise ConfigError(
            f"batch.tokens={config['batch']['tokens']} is {rows / sides:g} {unit}: their number must be a multiple of "
            f"trainer.devices={devices}, as with batch.tokens={near}"
        )


def _check_stages(config: Config) -> None:
    stages = config["stages"] or {}
    branches, chain = stages.get("branches"), stages.get("chain")
    if branches and len({quantity(tokens) for tokens in branches}) < len(branches):
        raise ConfigError(f"stages.branches={branches} lists a number of tokens twice: remove one of the two")
    if chain is not None and len(chain) < 2:
        raise ConfigError(f"stages.chain={list(chain)} must have at least two stages: add one, or set stages=null")
    if stages and (config.get("callbacks") or {}).get("checkpoints") is None:
        raise ConfigError(
            "callbacks.checkpoints=null does not work with stages, because a stage starts from the checkpoint of "
            "another one: remove callbacks.checkpoints=null"
        )
    for name, value in config["budget"].items():
        if branches and value is not None:
            raise ConfigError(f"budget.{name}={value} and stages.branches={branches} exclude each other: remove one")


def _check_next_token(config: Config) -> None:
    target = str(config["objective"]["_target_"])
    name, needs_causal = target.rsplit(".", 1)[-1].lower(), class_attribute(target, "needs_causal")
    if needs_causal and argument(config["model"], "causal") is False:
        raise ConfigError(
            f"objective={name} predicts the next token, which a model with model.causal=false can read: "
            "set objective=mlm or model=gpt"
        )


def _check_future(config: Config) -> None:
    """Parts of the model that predict later tokens are trained by the loss of next tokens alone."""
    future, target = argument(config["model"], "future"), str(config["objective"]["_target_"])
    if not future:
        return
    if argument(config["model"], "causal") is False:
        raise ConfigError(f"model.future={future} needs a causal model, and model.causal=false: set model.future=0")
    if not class_attribute(target, "trains_future"):
        name = target.rsplit(".", 1)[-1].lower()
        raise ConfigError(
            f"model.future={future} needs objective=clm or sft, and objective={name} trains no part of the model for "
            "later tokens: set model.future=0"
        )


def _check_prefix(config: Config) -> None:
    """A model that reads prompts in both directions needs an objective that says where they end."""
    model, target = config["model"], str(config["objective"]["_target_"])
    options = [options for _, options in attention_kinds(model).values()]
    keys = [key for each in options for key, value in each.items() if key.endswith(".prefix") and value is True]
    if keys and argument(model, "causal") is False:
        raise ConfigError(f"{keys[0]}=true needs model.causal=true, because a bidirectional model reads all tokens")
    if keys and argument(model, "depth") == 1:
        raise ConfigError(
            f"{keys[0]}=true would have no effect, because a target reads only the prompt's tokens in a model of "
            "model.depth=1: set a larger model.depth, or remove it"
        )
    if keys and not class_attribute(target, "reads_prefix"):
        name = target.rsplit(".", 1)[-1].lower()
        raise ConfigError(
            f"{keys[0]}=true needs objective=sft or clm, and objective={name} marks no prompts: remove it"
        )


def _check_pooling(config: Config) -> None:
    objective = config["objective"]
    if argument(objective, "pooling") == "class-token" and argument(config["model"], "causal"):
        raise ConfigError(
            "objective.pooling=class-token needs a bidirectional model, because the first hidden state of a causal "
            "model depends on no other token: set objective.pooling=mean or last, or model=bert"
        )


def _check_wise(config: Config) -> None:
    """WiSE interpolates weights by name, and a wrapped model has other names with an adapter than after merging it."""
    renames_weights = is_wrapped(config["model"]) and adds_weights(config.get("adapter"))
    for name, node in (config.get("retention") or {}).items():
        if not node or not class_attribute(node["_target_"], "averages_weights"):
            continue
        alphas = argument(node, "alphas") or ()
        if len(set(alphas)) < len(alphas):
            raise ConfigError(f"retention.{name}.alphas={alphas} must be distinct: remove one of two equal numbers")
        if renames_weights:
            raise ConfigError(
                "retention=wise with adapter=lora or dora does not work with model=hf: set adapter=freeze"
            )


def _check_replay(config: Config) -> None:
    """Text that the model writes itself is not kept."""
    for name, node in (config.get("retention") or {}).items():
        if node and node.get("memory") is not None and argument(node, "source") == "generated":
            raise ConfigError(
                f"retention.{name}.memory={node['memory']} needs source=real: with source=generated set "
                "generated_tokens"
            )


def _check_l2sp_strength(config: Config) -> None:
    """A step of L2-SP shrinks the distance to the start by the share lr x strength, which must not exceed 1."""
    rate = argument(config["optimizer"], "lr")
    for name, node in (config.get("retention") or {}).items():
        shrinks = node and class_attribute(node["_target_"], "shrinks_distance")
        strength = argument(node, "strength") if shrinks else None
        if strength and rate and rate * strength > 1:
            raise ConfigError(
                f"retention.{name}.strength={strength} must be <= {1 / rate:g} at optimizer.lr={rate:g}: a larger one "
                "overshoots the initial weights"
            )


def _check_answers(config: Config) -> None:
    """A model learns from answers that it writes on a device that has all weights, and from no other rows."""
    target, trainer = str(config["objective"]["_target_"]), str(config["trainer"]["_target_"])
    methods = {key: node["_target_"] for key, node in (config.get("retention") or {}).items() if node}
    refused = [f"retention={key}" for key, method in methods.items() if class_attribute(method, "mixes_data")]
    refused += ["trainer=fsdp"] if class_attribute(trainer, "shards_weights") else []
    if refused and class_attribute(target, "answers"):
        raise ConfigError(
            f"{refused[0]} does not work with objective={target.rsplit('.', 1)[-1].lower()}, which learns from answers "
            "that the model writes with all of its weights: remove it"
        )


def _check_reference(config: Config) -> None:
    if config["objective"].get("reference") == "adapter_off" and not adds_weights(config.get("adapter")):
        raise ConfigError(
            "objective.reference=adapter_off needs an adapter that can be switched off: set adapter=lora, or "
            "objective.reference=start"
        )


def _check_packing(config: Config) -> None:
    model, packed, fix = config["model"], "data.pack=true", "data.pack=false"
    if not argument(config["data"], "pack"):
        return
    if is_wrapped(model):
        raise ConfigError(
            f"{packed} puts several conversations in a row, and model=hf attends across their borders: set {fix}"
        )
    for target, _ in attention_kinds(model).values():
        if class_attribute(target, "is_recurrent"):
            raise ConfigError(
                f"{packed} puts several conversations in a row, and model/attention={NAMES.get(target, target)} reads "
                f"on across their borders: set {fix}, or model/attention=full"
            )


def _check_weights(config: Config) -> None:
    """Masked prediction chooses its targets among the tokens with a weight, and counts all of them the same."""
    weighs_tokens = class_attribute(config["data"]["_target_"], "weighs_tokens")
    if weighs_tokens and class_attribute(config["objective"]["_target_"], "reads_weights") is False:
        raise ConfigError(
            "data=reweighted weighs the tokens of the loss, which objective=mlm does not: set objective=clm, or "
            "data=counterfactual, which works with both"
        )


def _check_rollback(config: Config) -> None:
    """A run goes back to a checkpoint only where it saves some before its last step."""
    callbacks = config.get("callbacks") or {}
    stability, checkpoints = callbacks.get("stability"), callbacks.get("checkpoints")
    if stability is None or argument(stability, "policy") != "rollback":
        return
    if checkpoints is None or argument(checkpoints, "every") == 0:
        wrong = "callbacks.checkpoints=null" if checkpoints is None else "callbacks.checkpoints.every=0"
        raise ConfigError(
            f"callbacks.stability.policy=rollback goes back to a checkpoint, and {wrong} saves none before the last "
            "step: remove it, or set callbacks.stability.policy=skip"
        )
