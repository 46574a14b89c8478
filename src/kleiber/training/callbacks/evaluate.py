"""Scores tasks on fixed sets of samples while training; its seconds are not the training's.

The stage's own tasks are scored as often as asked. Where there is something to forget, every task of the run and of
its start point is scored before the first and after the last step (the rows of R) and, on fewer tokens, at steps 1, 2,
4, 8, ... of it, the earlier ones whenever the own ones are: what is lost in the first steps is often regained.

Ends training when the validation loss is good enough: budget.stop_at_loss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from kleiber.evals.perplexity import Place, scores
from kleiber.nn.sharding import full_parameters
from kleiber.training.lightning import Watch
from kleiber.types.contracts import Task

log = logging.getLogger(__name__)


class Evaluate(Watch):
    """Every `every` optimizer steps (0: never else) and after the last one, for each own task t: val/<t>/loss (nats per
    token, or the mean over samples), val/<t>/bits_per_byte for likelihoods of text, and what its scorer says.

    own           tasks that the stage trains on
    earlier       tasks that it may forget
    later         tasks that stages after it will train on
    from_weights  whether there is something to forget or to build on, so that the start is scored too
    start         scores before the first step, where they are known already
    tokens        targets scored per task, the same ones every time; None for all
    watched       targets scored per task while the stage goes on, as watch/<t>/loss
    rows          samples per forward pass
    place         the ranks that share the work

    `latest`, `start` and `curve` (rows of step and metrics) hold the results; all are resumed.
    """

    def __init__(
        self,
        own: Sequence[Task],
        every: int,
        tokens: int | None,
        rows: int,
        place: Place = Place(),  # noqa: B008 (frozen)
        earlier: Sequence[Task] = (),
        later: Sequence[Task] = (),
        from_weights: bool = False,
        start: dict[str, float] | None = None,
        watched: int = 32768,
    ) -> None:
        self.own, self.earlier, self.others = list(own), list(earlier), [*earlier, *later]
        self.all = [*own, *self.others]
        self.every, self.tokens, self.rows, self.watched = every, tokens, rows, watched
        self.place, self.from_weights = place, from_weights
        self.start: dict[str, float] = start or {}
        self.latest: dict[str, float] = {}
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "curve": self.curve, "start": self.start, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest, self.curve, self.start = state_dict["latest"], state_dict["curve"], state_dict["start"]
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.tell_parts()
        if not self.from_weights or trainer.global_step:
            return
        if not self.start:
            self.start = self.scores(pl_module.model, self.all, self.tokens, "val")
        self.put(trainer, self.start | self.watch(pl_module.model, self.earlier))

    def tell_parts(self) -> None:
        """Of rows that have a metric, such as accuracy, a part is no official score: it is said."""
        for task in self.own:
            some, all_ = len(task.held_out.first(self.tokens)), len(task.held_out)
            if some < all_ and task.objective.metric != "loss":
                log.warning(
                    "%s is scored on the first %d of %d rows: eval.tokens=%d; eval.tokens=null scores all",
                    task.name, some, all_, self.tokens,
                )  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        last, due = step == trainer.max_steps, bool(self.every and step % self.every == 0)
        switch = bool(self.earlier) and step & (step - 1) == 0
        if last or due:
            self.latest = self.scores(pl_module.model, self.all if last else self.own, self.tokens, "val")
        if last or due or switch:
            found = self.latest if last or due else {}
            self.put(trainer, found | self.watch(pl_module.model, self.all if switch else self.earlier))

    def finish(self, trainer: Trainer, model: Any) -> None:
        """Where a step turns out to be the last one when the own tasks are scored already: the others."""
        found = self.scores(model, self.others, self.tokens, "val")
        self.latest |= found
        self.curve[-1] |= found
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)

    def watch(self, model: Any, tasks: Sequence[Task]) -> dict[str, float]:
        return self.scores(model, tasks, self.watched, "watch")

    def put(self, trainer: Trainer, found: dict[str, float]) -> None:
        self.curve.append({"step": trainer.global_step, **found})
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)

    def scores(self, model: Any, tasks: Sequence[Task], tokens: int | None, prefix: str) -> dict[str, float]:
        """The metrics of the model as it is now; the time that they take is counted."""
        began = time.perf_counter()
        with full_parameters(model):
            found = scores(model, tasks, tokens, self.rows, self.place, prefix)
        self.seconds += time.perf_counter() - began
        return found


class StopAtLoss(Watch):
    """After `evaluate`: the step whose scores reach `loss` becomes the last one, with all that is done after it."""

    def __init__(self, loss: float, evaluate: Evaluate) -> None:
        self.loss, self.evaluate = loss, evaluate

    def reached(self, step: int) -> bool:
        """Whether every own task was scored at `step`, and at `loss` or below."""
        scored = self.evaluate.curve[-1] if self.evaluate.curve else {}
        names = [f"val/{task.name}/loss" for task in self.evaluate.own]
        return scored.get("step") == step and all(scored.get(name, float("inf")) <= self.loss for name in names)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step < trainer.max_steps and self.reached(trainer.global_step):
            self.evaluate.finish(trainer, pl_module.model)
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step
