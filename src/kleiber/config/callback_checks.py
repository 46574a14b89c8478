"""Checks of Lightning's callbacks: which cannot work in a run, and what does the same here. Imports no torch.

kleiber makes its optimizer steps, validations, checkpoints and progress lines without Lightning's, and has no epochs.
Whether there is a metric that a callback monitors is checked when a run is planned (`kleiber.runs.monitors`).
"""

from __future__ import annotations

from collections.abc import Mapping

from kleiber.config.errors import ConfigError
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
