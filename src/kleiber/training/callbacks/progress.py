"""A callback that shows how far a stage is: loss, validation loss, speed and the time that is left."""

from __future__ import annotations

import time

from kleiber.records.closing_table import loss_unit, scores_by_domain
from kleiber.records.progress import DISPLAY, REFRESH, SECONDS, Activity, format_duration
from kleiber.records.terminal import print_line
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Count, Positive

MEASURED_SECONDS = 2.0  # of training steps, after which the expected time is printed
BACKWARD = 3.0  # a training step takes about this times a forward pass over the same tokens


class Training(Activity):
    """A stage that is being trained. `line` describes its present state, and `done` is its last step."""

    line = "waiting for the first step"

    def text(self) -> str:
        """Returns the present state, with the duration of a first step that takes long."""
        return self.line if self.done else f"{self.line}, {format_duration(time.monotonic() - self.began)}"

    def closing_text(self) -> str | None:
        """Returns the state after the last step; None where no step was made."""
        return self.line if self.done else None


class Speed:
    """Measures steps and evaluations of this process apart from each other, and estimates the time that is left.

    The first step counts for neither, because it allocates memory and may compile the model.

    first          step before the first one that is measured
    evaluation     seconds of one evaluation of the stage's tasks: the latest one, else an estimate
    """

    def __init__(self, step: int, evaluate: Evaluate, batch_tokens: int) -> None:
        self.first, self.evaluate, self.batch_tokens = step, evaluate, batch_tokens
        self._began = time.perf_counter()
        self._before = self._evaluated = evaluate.record.evaluation_seconds
        self._targets = sum(task.held_out.first(evaluate.tokens).num_tokens for task in evaluate.stage_tasks)
        self._evaluation: float | None = None

    def note_evaluation(self) -> None:
        """Called after the tasks of the stage were scored."""
        self._evaluation = self.evaluate.record.evaluation_seconds - self._evaluated

    @property
    def training_seconds(self) -> float:
        """Seconds of the measured steps, with checkpoints and logging."""
        return time.perf_counter() - self._began - (self.evaluate.record.evaluation_seconds - self._before)

    def tokens_per_second(self, step: int) -> float | None:
        """Returns the mean speed of training since the first step; None where no later step was made."""
        self._evaluated = self.evaluate.record.evaluation_seconds
        steps = step - self.first
        return steps * self.batch_tokens / self.training_seconds if steps else None

    def evaluations(self, step: int, last: int) -> int:
        """Returns the number of evaluations after `step`."""
        every = self.evaluate.every
        if step >= last:
            return 0
        return -(-last // every) - step // every if every else 1

    def evaluation(self, speed: float) -> float:
        """Returns the seconds of one evaluation: of the latest one, else estimated from the speed of training."""
        return self._targets / (BACKWARD * speed) if self._evaluation is None else self._evaluation

    def seconds_left(self, step: int, last: int, speed: float) -> float:
        """Returns how long the steps and evaluations after `step` will take."""
        steps = (last - step) * self.batch_tokens / speed
        return steps + self.evaluations(step, last) * self.evaluation(speed)


class Progress(LeanCallback):
    """Shows step, loss, validation loss, learning rate, tokens/s and the time that is left, on rank 0.

    In a terminal it updates one line twice a second; elsewhere it prints a line every `seconds`, less often in runs of
    hours. Every validation gets a line of its own. After the first steps it prints how long the stage will take, with
    its evaluations.

    seconds  between two lines
    """

    def __init__(self, batch_tokens: Count, evaluate: Evaluate, seconds: Positive = SECONDS) -> None:
        self.batch_tokens, self.evaluate, self.seconds = batch_tokens, evaluate, seconds
        self.training: Training | None = None
        self.speed: Speed | None = None
        self._due, self._expected, self._validation = 0.0, False, ""

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Shows the stage from now on."""
        if trainer.is_global_zero:
            self.training = Training("training", trainer.max_steps, "steps", self.seconds)
            self.speed, self._expected, self._validation = None, False, ""
            DISPLAY.begin(self.training)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Updates the line where that is due, and prints the scores of this step."""
        if self.training is None:
            return
        step, last = trainer.global_step, trainer.max_steps
        scores = self.evaluate.record.scores_of(step)
        if self.speed is None:
            self.speed = Speed(step, self.evaluate, self.batch_tokens)
        elif scores:
            self.speed.note_evaluation()
        if not scores and time.perf_counter() < self._due and step < last:
            return
        self._due = time.perf_counter() + REFRESH
        speed = self.speed.tokens_per_second(step)
        if scores:
            self._print_scores(step, last)
        if not self._expected and speed and (scores or self.speed.training_seconds >= MEASURED_SECONDS) and step < last:
            self._expected = True
            self._print_expected(step, last, speed)
        self.training.line, self.training.done = self._line(pl_module, step, last, speed), step

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Prints the last state."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LitLM, exception: BaseException) -> None:
        """Prints the last state, so that the error stands below it."""
        self._end()

    def _end(self) -> None:
        if self.training is not None:
            self.training.shown = True
            DISPLAY.end(self.training)
            self.training = None

    def _print_scores(self, step: int, last: int) -> None:
        record = self.evaluate.record
        scores = record.scores_of(step)
        losses = [scores[f"val/{task}/loss"] for task in record.tasks if f"val/{task}/loss" in scores]
        self._validation = f"  val {sum(losses) / len(losses):.3f}" if losses else ""
        units = {task.name: task.objective.unit for task in self.evaluate.all}
        by_task = scores_by_domain(scores, loss_unit(record.objective), units)
        print_line(f"step {step:,}/{last:,}: validation {'; '.join(map(' '.join, by_task.items()))}", err=True)

    def _print_expected(self, step: int, last: int, speed: float) -> None:
        assert self.speed is not None
        left, evaluations = self.speed.seconds_left(step, last, speed), self.speed.evaluations(step, last)
        each = f"{format_duration(self.speed.evaluation(speed))}{' each' if evaluations > 1 else ''}"
        steps = f"{last - step:,} more step{'s' * (last - step != 1)}"
        print_line(
            f"expected time {format_duration(left)}: {steps} at {speed:,.0f} tokens/s, "
            f"{evaluations} evaluation{'s' * (evaluations != 1)} of {each}",
            err=True,
        )

    def _line(self, pl_module: LitLM, step: int, last: int, speed: float | None) -> str:
        stats = pl_module.last
        line, rate = f"step {step:,}/{last:,}  loss {float(stats['ce']):.3f}{self._validation}", float(stats["lr"])
        if speed is not None and self.speed is not None:
            left = "" if step == last else f"  {format_duration(self.speed.seconds_left(step, last, speed))} left"
            line = f"{line}  {speed:,.0f} tokens/s{left}"
        return f"{line}  lr {rate:.2g}"
