"""Watches training for spikes of loss and gradient and, as told, only says where they were or does not take the step.

A run that goes on silently hides what a spike cost. By default it changes nothing about training: a loss that is not
finite is `lit`'s business, and ends the run.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Trainer

from kleiber.training.lightning import Watch
from kleiber.training.step import Diverged

SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
IN_A_ROW = 10  # refused steps after which the loss has not leapt but moved


class Stability(Watch):
    """Logs train/spikes and train/skipped (so far) when a step leaps above the usual of the last `window` steps.

    A spike is a step whose cross-entropy is above median + max(`deviations` robust standard deviations, `least` nats),
    or whose gradient norm is above `norms` medians; it is told once, with its step and samples, and over when a step is
    below both lines again. Resumed with the run.

    policy     tell: say so and go on; skip: leave weights and optimizer as they were before a spike, and go on with the
               next batch (of Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, who also went back 100 steps)
    nonfinite  halt: a loss or gradient that is not finite ends the run; skip: the step is not taken

    Ten refused steps in a row end the run as diverged.
    """

    def __init__(
        self,
        window: int = 50,
        deviations: float = 8.0,
        least: float = 0.3,
        norms: float = 10.0,
        policy: Literal["tell", "skip"] = "tell",
        nonfinite: Literal["halt", "skip"] = "halt",
    ) -> None:
        if window < 10 or deviations <= 0 or least <= 0 or norms <= 1:
            raise ValueError(
                f"callbacks.stability: window={window} must be at least 10, deviations={deviations} and "
                f"least={least} positive, norms={norms} above 1"
            )
        if policy not in ("tell", "skip") or nonfinite not in ("halt", "skip"):
            raise ValueError(
                f"callbacks.stability: policy={policy} is tell or skip, nonfinite={nonfinite} halt or skip"
            )
        self.window, self.deviations, self.least, self.norms = window, deviations, least, norms
        self.policy, self.nonfinite = policy, nonfinite
        self.recent: deque[float] = deque(maxlen=window)
        self.recent_norms: deque[float] = deque(maxlen=window)
        self.spikes = self.skipped = self.in_a_row = 0
        self.inside = self.began = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": list(self.recent), "norms": list(self.recent_norms), "spikes": self.spikes,
            "skipped": self.skipped, "in_a_row": self.in_a_row, "inside": self.inside,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent = deque(state_dict["recent"], maxlen=self.window)
        self.recent_norms = deque(state_dict.get("norms", ()), maxlen=self.window)
        self.spikes, self.inside = state_dict["spikes"], state_dict["inside"]
        self.skipped, self.in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.guard = self

    def refuses(self, loss: float, norm: float) -> bool:
        """Judges a step before it changes a weight, by numbers that are the same on every rank."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        usual = median(self.recent_norms, self.window)
        leaps = not finite or self.above(loss) or (usual is not None and norm > self.norms * usual)
        self.began = leaps and not self.inside
        self.spikes += self.began
        self.inside = leaps
        if not leaps:  # a spike is no part of what is usual
            self.recent.append(loss)
            self.recent_norms.append(norm)
        refused = leaps and (self.policy if finite else self.nonfinite) == "skip"
        self.skipped += refused
        self.in_a_row = self.in_a_row + 1 if refused else 0
        if self.in_a_row > IN_A_ROW:
            raise Diverged(f"more than {IN_A_ROW} steps in a row were refused as spikes, the last with loss {loss:g}")
        return refused

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if self.began:
            self._tell(trainer, float(pl_module.last["ce"]), batch)
        elif self.in_a_row:
            self._log(trainer)

    def above(self, loss: float) -> bool:
        """Whether a step with that loss is a spike. Of most steps the median alone says no: the line takes longer."""
        usual = median(self.recent, self.window)
        if usual is None or loss <= usual + self.least:
            return False
        line = self.line()
        return line is not None and loss > line

    def line(self) -> float | None:
        """The loss above which a step is a spike; None until half a window has been seen."""
        usual = median(self.recent, self.window)
        if usual is None:
            return None
        spread = SIGMA * statistics.median(abs(value - usual) for value in self.recent)
        return usual + max(self.deviations * spread, self.least)

    def _log(self, trainer: Trainer) -> None:
        row = {"train/spikes": float(self.spikes)} | ({"train/skipped": float(self.skipped)} if self.skipped else {})
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)

    def _tell(self, trainer: Trainer, loss: float, batch: Any) -> None:
        self._log(trainer)
        if trainer.is_global_zero:
            usual = median(self.recent, self.window)
            before = "" if usual is None else f" after {usual:.3f}"
            samples = "" if batch.samples is None else f"; samples {batch.samples[:4].tolist()}..."
            done = ", skipped" if self.in_a_row else ""
            print(f"loss spike at step {trainer.global_step:,}: {loss:.3f}{before}{samples}{done}", file=sys.stderr)


def median(values: Sequence[float], window: int) -> float | None:
    """None until half a window has been seen."""
    return statistics.median(values) if len(values) >= window // 2 else None
