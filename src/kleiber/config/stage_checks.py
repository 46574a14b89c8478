"""Checks that a stage has the weights and the validations that its settings need. Imports no torch."""

from __future__ import annotations

from kleiber.config.errors import ConfigError
from kleiber.config.stages import has_pretrained_weights, starts_from_weights
from kleiber.config.targets import class_attribute
from kleiber.types import Config


def check_stage(config: Config, follows: bool = False) -> None:
    """Raises ConfigError for settings of a stage, or of a run of one stage, that would have no effect or no sense.

    follows  whether the stage starts from the weights of an earlier stage
    """
    if not (follows or starts_from_weights(config) or has_pretrained_weights(config["model"])):
        _check_random_weights(config)
    _check_validations(config)


def _check_random_weights(config: Config) -> None:
    """Refuses what is about the weights that a stage starts from, where those are random."""
    fix = "set init=checkpoint init.path=RUN, or train several stages with stages=docs_then_code"
    if config.get("retention"):
        raise ConfigError(f"retention={list(config['retention'])} needs weights that were trained before: {fix}")
    if adds_weights(config.get("adapter")):
        kind = config["adapter"]["_target_"].rsplit(".", 1)[-1]
        raise ConfigError(
            f"adapter={kind.lower()} freezes the weights that a stage starts from, and these are random: {fix}, whose "
            "later stages have the adapter"
        )


def adds_weights(adapter: Config | None) -> bool:
    """Whether an adapter adds parameters to frozen weights."""
    return bool(adapter and class_attribute(adapter["_target_"], "adds_weights"))


def _check_validations(config: Config) -> None:
    """Refuses a target loss that no validation can reach, and a time between evaluations of which there are none."""
    target, evaluation = config["budget"].get("stop_at_loss"), config["eval"]
    if target is not None and evaluation.get("every_steps") == 0:
        raise ConfigError(
            f"budget.stop_at_loss={target} is checked at validations, and eval.every_steps=0 makes none before the "
            "last step: set eval.every_steps to a number of steps, or to null for four validations a stage"
        )
    every, evals = evaluation.get("every_tokens"), config.get("evals") or {}
    if every is not None and not any(evals.values()):
        raise ConfigError(
            f"eval.every_tokens={every} is the time between two runs of evals, and there are none: set evals, such as "
            "evals=[perplexity], or remove it; eval.every_steps is the time between validations"
        )
