"""Runs the evaluations of the config group `evals` during training and after the last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kleiber.evals.evaluation import Subject
from kleiber.evals.measure import Measurement, metrics, save_results
from kleiber.nn.sharding import full_parameters
from kleiber.records.summary import Scores, StageRecord
from kleiber.records.terminal import print_line
from kleiber.training.callbacks.evaluate import add_training_memory, apart_from_training
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Config


class RunEvaluations(LeanCallback):
    """Evaluates the model every `every` tokens and after the last step, on rank 0.

    The scores are metrics of the stage and rows of its curve, as eval/<name>/<data>/<metric>; the last results are in
    RUN/evals. They change neither the training nor its random numbers.

    subject       the model and how much of the data is scored
    settings      those of each evaluation, by name
    every         training tokens between two evaluations; None: after the last step only
    at_start      whether the model is evaluated before the first step, because it begins with trained weights
    at_end        whether it is evaluated after the last step
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        subject: Subject,
        record: StageRecord,
        folder: Path,
        settings: Mapping[str, Config],
        batch_tokens: int,
        every: int | None = None,
        at_start: bool = False,
        at_end: bool = True,
    ) -> None:
        self.measurements, self.subject, self.record, self.folder = measurements, subject, record, folder
        self.settings = settings
        self.batch_tokens, self.every, self.at_start, self.at_end = batch_tokens, every, at_start, at_end
        self.cost_printed = False

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Evaluates a model that begins with trained weights."""
        if self.at_start and not trainer.global_step:
            scores = self.scores(trainer, pl_module)
            self.record.start_metrics = {**self.record.start_metrics, **scores}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Evaluates the model where that is due after this step."""
        step = trainer.global_step
        if step == trainer.max_steps:
            due = self.at_end
        else:
            due = self.every is not None and step * self.batch_tokens // self.every > (
                (step - 1) * self.batch_tokens // self.every
            )
        if due:
            if step < trainer.max_steps:  # where `Evaluate` has added it before it scored
                add_training_memory(self.record, pl_module.device)
            scores = self.scores(trainer, pl_module)
            self.record.add_to_row(step, scores)

    def measure(self, measurement: Measurement, step: int) -> Scores:
        """The scores of one evaluation, and its results in RUN/evals; {} with a warning where it fails."""
        results = measurement.measure_or_warn(self.subject.after(step + self.record.skipped_steps))
        if results is None:
            return {}
        settings = self.settings[measurement.name]
        save_results(self.folder, measurement.name, results, dict.fromkeys(results.scores, settings))
        return metrics(measurement.name, results)

    def scores(self, trainer: Trainer, pl_module: LitLM) -> Scores:
        """Evaluates the model, logs and returns its scores by metric; {} on every other rank than the first."""
        model, scores, before = pl_module.model, {}, self.record.evaluation_seconds
        with (
            apart_from_training(self.record, pl_module.device),
            full_parameters(model),
            trainer.precision_plugin.val_step_context(),
        ):
            if trainer.is_global_zero:
                for measurement in self.measurements:
                    scores |= self.measure(measurement, trainer.global_step)
        seconds = self.record.evaluation_seconds - before
        for logger in trainer.loggers:
            logger.log_metrics(scores, trainer.global_step)
        if trainer.is_global_zero and self.every is not None and not self.cost_printed:
            self.cost_printed = True
            times = trainer.max_steps * self.batch_tokens // self.every
            names = ", ".join(measurement.name for measurement in self.measurements)
            often = f"about {times} time{'s' * (times != 1)} in this stage"
            print_line(f"evaluating {names} takes {seconds:.1f} s, {often}", err=True)
        return scores
