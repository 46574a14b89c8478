"""Scores tasks while a stage trains, scores an average of the weights beside them, and stops at a target loss.

The tasks of the stage are scored as often as configured. Where earlier tasks can be forgotten, all tasks of the run and
of its start point are scored before the first and after the last step (the rows of R), and on fewer tokens at steps 1,
2, 4, 8, ...; the earlier ones whenever the stage's own are. Loss from the first steps is often regained.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from kleiber.evals.perplexity import Runtime, score_tasks
from kleiber.records.summary import Scores, StageRecord
from kleiber.training import checkpoint
from kleiber.training.lightning import LeanCallback, Trainer, stop_after_this_step
from kleiber.training.lit import LitLM
from kleiber.training.sharding import full_parameters
from kleiber.types import Json
from kleiber.types.contracts import Task
from kleiber.types.model import Model

log = logging.getLogger(__name__)


class Evaluate(LeanCallback):
    """Scores every task t of the stage each `every` optimizer steps (0: only after the last one), into the record.

    val/<t>/loss is in nats per token, or the mean over samples; val/<t>/bits_per_byte is there for likelihoods of text,
    and what the objective's scorer computes. Resumed with the run.

    record        receives metrics, start metrics, curve and the seconds of evaluation
    own           tasks that the stage trains on
    earlier       tasks that it may forget
    later         tasks that later stages train on
    from_weights  whether the run begins with trained weights, so that the start is scored too
    start         scores before the first step, where they are known already
    tokens        targets scored per task, the same ones every time; None for all
    watched       targets scored per task at steps 1, 2, 4, 8, ..., as watch/<t>/loss
    rows          samples per forward pass
    runtime       the ranks that share the work, and their precision
    """

    def __init__(
        self,
        record: StageRecord,
        own: Sequence[Task],
        every: int,
        tokens: int | None,
        rows: int,
        runtime: Runtime = Runtime(),  # noqa: B008 (frozen)
        earlier: Sequence[Task] = (),
        later: Sequence[Task] = (),
        from_weights: bool = False,
        start: Scores | None = None,
        watched: int = 32768,
    ) -> None:
        self.record, self.own, self.earlier, self.others = record, list(own), list(earlier), [*earlier, *later]
        self.all = [*own, *self.others]
        self.every, self.tokens, self.rows, self.watched = every, tokens, rows, watched
        self.runtime, self.from_weights = runtime, from_weights
        record.start_metrics = start or {}

    def state_dict(self) -> Json:
        record = self.record
        return {
            "latest": record.metrics,
            "curve": record.curve,
            "start": record.start_metrics,
            "seconds": record.evaluation_seconds,
        }

    def load_state_dict(self, state_dict: Json) -> None:
        record = self.record
        record.metrics, record.curve = state_dict["latest"], state_dict["curve"]
        record.start_metrics, record.evaluation_seconds = state_dict["start"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        self.warn_of_partial_scores()
        if not self.from_weights or trainer.global_step:
            return
        if not self.record.start_metrics:
            self.record.start_metrics = self.scores(pl_module.model, self.all, self.tokens, "val")
        self.log_row(trainer, self.record.start_metrics | self.watch(pl_module.model, self.earlier))

    def warn_of_partial_scores(self) -> None:
        """A metric such as accuracy on a part of the rows is not the published one."""
        for task in self.own:
            scored, rows = len(task.held_out.first(self.tokens)), len(task.held_out)
            if scored < rows and task.objective.metric != "loss":
                log.warning(
                    "%s is scored on the first %d of %d rows: eval.tokens=%d; eval.tokens=null scores all",
                    task.name, scored, rows, self.tokens,
                )  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        step = trainer.global_step
        last, due = step == trainer.max_steps, bool(self.every and step % self.every == 0)
        power_of_two = bool(self.earlier) and step & (step - 1) == 0
        if last or due:
            self.record.metrics = self.scores(pl_module.model, self.all if last else self.own, self.tokens, "val")
        if last or due or power_of_two:
            row = self.record.metrics if last or due else {}
            self.log_row(trainer, row | self.watch(pl_module.model, self.all if power_of_two else self.earlier))

    def score_other_tasks(self, trainer: Trainer, model: Model) -> None:
        """Scores the tasks that are not the stage's own, where a step turns out to be the last one."""
        self.add(trainer, self.scores(model, self.others, self.tokens, "val"))

    def add(self, trainer: Trainer, found: Scores) -> None:
        """Puts scores of this step beside those that were just taken."""
        self.record.add_scores(found, trainer.global_step)
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)

    def watch(self, model: Model, tasks: Sequence[Task]) -> Scores:
        """Scores on a few tokens."""
        return self.scores(model, tasks, self.watched, "watch")

    def log_row(self, trainer: Trainer, row: Scores) -> None:
        """A row of the curve, and of the loggers."""
        self.record.add_row(trainer.global_step, row)
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)

    def scores(self, model: Model, tasks: Sequence[Task], tokens: int | None, prefix: str) -> Scores:
        """Metrics of the model as it is now, by `prefix/<task>/<metric>`; counts the seconds that they take."""
        began = time.perf_counter()
        with full_parameters(model):
            new_scores = score_tasks(model, tasks, tokens, self.rows, self.runtime, prefix)
        self.record.evaluation_seconds += time.perf_counter() - began
        return new_scores


class StopAtLoss(LeanCallback):
    """Makes the step whose scores reach `loss` the last one, with everything that follows a last step.

    It has to come after `evaluate` among the callbacks.
    """

    def __init__(self, loss: float, evaluate: Evaluate) -> None:
        self.loss, self.evaluate = loss, evaluate

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        step = trainer.global_step
        if step < trainer.max_steps and self.evaluate.record.reaches(self.loss, step):
            self.evaluate.score_other_tasks(trainer, pl_module.model)
            stop_after_this_step(trainer)


class EMA(LeanCallback):
    """An exponential moving average of the weights; training is left alone.

    average = decay average + (1 - decay) weights after every step from `start` on, where it begins as the weights.
    Whenever the weights are scored so is the average, as val_ema/<task>/...; after the last step it is saved as the
    checkpoint `stages/<stage>/ema`. Polyak and Juditsky 1992; `decay` .999 averages over the last thousand steps, so
    choose a smaller one for a run of a few thousand steps.
    """

    def __init__(
        self, folder: Path, config_hash: str, evaluate: Evaluate, decay: float = 0.999, start: int = 0
    ) -> None:
        if not 0 < decay < 1 or start < 0:
            raise ValueError(f"callbacks.ema: decay={decay} must lie between 0 and 1, start={start} must be >= 0")
        self.folder, self.config_hash, self.evaluate = folder.parent / "ema", config_hash, evaluate
        self.decay, self.start = decay, start
        self.average: dict[str, Tensor] = {}

    def state_dict(self) -> Json:
        return {"average": self.average}

    def load_state_dict(self, state_dict: Json) -> None:
        self.average = state_dict["average"]

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        self.average = {name: tensor.to(pl_module.device) for name, tensor in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        step, model = trainer.global_step, pl_module.model
        if step < self.start:
            return
        weights = averaged_tensors(model)
        if self.average:
            torch._foreach_lerp_(list(self.average.values()), [weights[n] for n in self.average], 1 - self.decay)
        else:
            self.average = {name: tensor.detach().clone() for name, tensor in weights.items()}
        evaluate = self.evaluate
        if evaluate.record.scores_of(step):
            with self.in_place(model):
                averaged = evaluate.scores(model, evaluate.own, evaluate.tokens, "val_ema")
            evaluate.add(trainer, averaged)
        if step == trainer.max_steps and trainer.is_global_zero:
            with self.in_place(model):
                checkpoint.save(self.folder, step, model, {}, self.config_hash)
            checkpoint.tidy(self.folder, keep=1)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the average in place of its weights."""
        weights = averaged_tensors(model)
        kept = {name: weights[name].detach().clone() for name in self.average}
        try:
            copy_tensors(weights, self.average)
            yield
        finally:
            copy_tensors(weights, kept)


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are averaged: parameters, tied ones once, and saved buffers of floating point."""
    saved = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


@torch.no_grad()
def copy_tensors(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copies values into the tensors of the same name, in place."""
    for name, value in values.items():
        tensors[name].copy_(value)
