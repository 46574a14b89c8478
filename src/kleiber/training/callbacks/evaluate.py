"""Callbacks that score tasks during training, average the weights, and stop at a target loss or for Lightning's.

The tasks of the stage are scored as often as configured. Where earlier tasks can be forgotten, all tasks of the run and
of its start point are scored before the first and after the last step (the rows of the score matrix R). They are also
scored on fewer tokens at steps 1, 2, 4, 8, ..., because forgetting in the first steps is often reversed later; the
earlier tasks are scored so whenever the stage's own tasks are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kleiber.evals.task_scores import Runtime, score_tasks
from kleiber.records.summary import StageRecord
from kleiber.records.terminal import print_line
from kleiber.training.lightning import Callback, LeanCallback, Trainer, end_validation, stop_after_this_step
from kleiber.training.lit import LitLM
from kleiber.training.memory import peak_memory_bytes, reset_peak_memory
from kleiber.training.step import Diverged
from kleiber.types import Json
from kleiber.types.contracts import Task
from kleiber.types.model import Model, device_of
from kleiber.types.score import Score, Scores, values_of

log = logging.getLogger(__name__)


class Evaluate(LeanCallback):
    """Scores every task t of the stage every `every` optimizer steps (0: only after the last step).

    val/<t>/loss is in nats per token, or a mean over samples. Likelihoods of text also have val/<t>/bits_per_byte, and
    the objective's scorer may add metrics. The state is saved and resumed with the run.

    record          receives metrics, start metrics, curve and the seconds of evaluation
    stage_tasks     tasks that the stage trains on
    earlier         tasks that it may forget
    later           tasks that later stages train on
    from_weights    whether the run begins with trained weights, so that the start is scored too
    start           scores before the first step, where they are already known
    tokens          targets scored per task, the same ones every time; None for all
    watched         targets scored per task at steps 1, 2, 4, 8, ..., as watch/<t>/loss
    rows            samples per forward pass
    runtime         the ranks that share the work, and their precision
    """

    def __init__(
        self,
        record: StageRecord,
        stage_tasks: Sequence[Task],
        every: int,
        tokens: int | None,
        rows: int,
        runtime: Runtime = Runtime(),  # noqa: B008 (frozen)
        earlier: Sequence[Task] = (),
        later: Sequence[Task] = (),
        from_weights: bool = False,
        start: dict[str, float] | None = None,
        watched: int = 32768,
    ) -> None:
        self.record, self.stage_tasks, self.earlier = record, list(stage_tasks), list(earlier)
        self.others = [*earlier, *later]
        self.all = [*stage_tasks, *self.others]
        self.every, self.tokens, self.rows, self.watched = every, tokens, rows, watched
        self.runtime, self.from_weights = runtime, from_weights
        record.start_metrics = start or {}

    def state_dict(self) -> Json:
        """The scores so far and the seconds that they took."""
        record = self.record
        return {
            "latest": {key: score.to_json() for key, score in record.scores.items()},
            "curve": record.curve,
            "start": record.start_metrics,
            "stage": record.name,
            "seconds": record.evaluation_seconds,
        }

    def load_state_dict(self, state_dict: Json) -> None:
        """Goes on from a checkpoint: with its latest scores and its curve."""
        record = self.record
        record.scores = {key: Score.from_json(values) for key, values in state_dict["latest"].items()}
        record.start_metrics, record.curve = state_dict["start"], state_dict["curve"]
        if state_dict["stage"] == record.name:  # a branch has the curve of its trunk, whose time it did not spend
            record.evaluation_seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Scores all tasks before the first step, in a run that begins with trained weights."""
        self.warn_of_partial_scores()
        if not self.from_weights or trainer.global_step:
            return
        if not self.record.start_metrics:
            self.record.start_metrics = values_of(self.scores(pl_module.model, self.all, self.tokens, "val"))
        self.log_row(trainer, self.record.start_metrics | self.watch(pl_module.model, self.earlier))

    def warn_of_partial_scores(self) -> None:
        """Warns where a metric such as accuracy is computed on a part of the rows; published numbers use all rows."""
        for task in self.stage_tasks:
            scored, rows = len(task.held_out.first(self.tokens)), len(task.held_out)
            if scored < rows and task.objective.metric != "loss":
                log.warning(
                    "%s is scored on the first %d of %d rows: eval.tokens=%d; eval.tokens=null scores all",
                    task.name, scored, rows, self.tokens,
                )  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Scores the tasks that are due after this step.

        Raises Diverged where the loss of a task of the stage is not finite: the step has changed the weights, and no
        further step may find it.
        """
        step = trainer.global_step
        last, due = step == trainer.max_steps, bool(self.every and step % self.every == 0)
        power_of_two = bool(self.earlier) and step & (step - 1) == 0
        if last or due or power_of_two:
            add_training_memory(self.record, pl_module.device)
        if last or due:
            self.record.scores = self.scores(
                pl_module.model, self.all if last else self.stage_tasks, self.tokens, "val"
            )
        if last or due or power_of_two:
            row = self.record.metrics if last or due else {}
            self.log_row(trainer, row | self.watch(pl_module.model, self.all if power_of_two else self.earlier))
            for task in self.stage_tasks:
                loss = row.get(f"val/{task.name}/loss", 0.0)
                if not math.isfinite(loss):
                    raise Diverged(f"step {step}: the validation loss of {task.name} is {loss:g}")

    def score_last_step(self, trainer: Trainer, model: Model) -> None:
        """Scores the tasks that a step was not scored on yet, when it turns out to be the last one."""
        step = trainer.global_step
        scored = self.record.scores_of(step)
        if not scored:
            add_training_memory(self.record, device_of(model))
            self.record.scores = {}
        tasks = self.others if scored else self.all
        scores = self.scores(model, tasks, self.tokens, "val")
        self.record.add_to_row(step, scores)
        for logger in trainer.loggers:
            logger.log_metrics(values_of(scores), step)

    def add(self, trainer: Trainer, scores: Scores) -> None:
        """Adds scores to those of this step, in the record and the loggers."""
        self.record.add_scores(scores, trainer.global_step)
        for logger in trainer.loggers:
            logger.log_metrics(values_of(scores), trainer.global_step)

    def watch(self, model: Model, tasks: Sequence[Task]) -> dict[str, float]:
        """Values of the scores on the first `watched` targets of each task, as watch/<task>/<metric>."""
        return values_of(self.scores(model, tasks, self.watched, "watch"))

    def log_row(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Adds a row to the curve of the record and to the loggers."""
        self.record.add_row(trainer.global_step, row)
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)

    def scores(self, model: Model, tasks: Sequence[Task], tokens: int | None, prefix: str) -> Scores:
        """Scores of the model by `prefix/<task>/<metric>`; adds the seconds that they take to the record."""
        with apart_from_training(self.record, device_of(model)):
            return score_tasks(model, tasks, tokens, self.rows, self.runtime, prefix)


def add_training_memory(record: StageRecord, device: torch.device) -> None:
    """Sets the peak memory of the record to that of training, to be called after a step and before an evaluation.

    On a GPU it is that of this stage without evaluations. On a CPU it is the largest resident memory of the process so
    far, with libraries, earlier stages and evaluations, because that cannot be reset.
    """
    record.peak_memory_bytes = max(record.peak_memory_bytes, peak_memory_bytes(device))


@contextmanager
def apart_from_training(record: StageRecord, device: torch.device) -> Iterator[None]:
    """Adds the seconds within the context to those of evaluation; on a GPU, its memory leaves no peak."""
    began = time.perf_counter()
    yield
    reset_peak_memory(device)
    record.evaluation_seconds += time.perf_counter() - began


class StopAtLoss(LeanCallback):
    """Ends training after the step whose scores reach `loss`, as if it were the last step.

    It must come after `evaluate` in the list of callbacks.
    """

    def __init__(self, loss: float, evaluate: Evaluate) -> None:
        self.loss, self.evaluate = loss, evaluate

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Stops where every task of the stage has just been scored at the target loss or below."""
        step = trainer.global_step
        if step < trainer.max_steps and self.evaluate.record.reaches(self.loss, step):
            self.evaluate.score_last_step(trainer, pl_module.model)
            stop_after_this_step(trainer)


class LightningHooks(LeanCallback):
    """Shows validations to callbacks of Lightning, such as EarlyStopping, and ends training where one asks for it.

    The step after which `trainer.should_stop` is set is then the last one: it is scored, and its checkpoint is saved.
    It must come after `evaluate` and after the callbacks of Lightning in the list of callbacks.

    stopped  the step after which a callback ended this stage; None where none did
    """

    of_one_stage = True

    def __init__(self, evaluate: Evaluate, callbacks: Sequence[Callback]) -> None:
        self.evaluate, self.callbacks = evaluate, list(callbacks)
        self.stopped: int | None = None

    def state_dict(self) -> Json:
        return {"stopped": self.stopped}

    def load_state_dict(self, state_dict: Json) -> None:
        self.stopped = state_dict["stopped"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Calls the validation hooks where the step was scored, and stops where a callback asked for it."""
        step = trainer.global_step
        if scores := self.evaluate.record.scores_of(step):
            end_validation(trainer, pl_module, self.callbacks, scores)
        if trainer.should_stop and step < trainer.max_steps:
            self.stopped = step
            self.evaluate.score_last_step(trainer, pl_module.model)
            stop_after_this_step(trainer)
            if trainer.is_global_zero:
                print_line(f"step {step:,}: a callback of Lightning ends the training", err=True)
