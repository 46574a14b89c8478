"""Watches the training loss for spikes and says where they were; a run that goes on silently hides what it cost.

It changes nothing about training: a loss that is not finite is `lit`'s business, and ends the run.
"""

from __future__ import annotations

import statistics
import sys
from collections import deque
from typing import Any

from lightning.pytorch import Callback, Trainer

SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class Stability(Callback):
    """Logs train/spikes (so far) when the cross-entropy of a step leaps above the median of the last `window` steps.

    A spike is a step above median + max(`deviations` robust standard deviations, `least` nats); it is told once, with
    its step and samples, and over when a step is below that line again. Resumed with the run.
    """

    def __init__(self, window: int = 50, deviations: float = 8.0, least: float = 0.3) -> None:
        if window < 10 or deviations <= 0 or least <= 0:
            raise ValueError(
                f"callbacks.stability: window={window} must be at least 10, deviations={deviations} and "
                f"least={least} positive"
            )
        self.window, self.deviations, self.least = window, deviations, least
        self.recent: deque[float] = deque(maxlen=window)
        self.spikes, self.inside = 0, False

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "spikes": self.spikes, "inside": self.inside}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent = deque(state_dict["recent"], maxlen=self.window)
        self.spikes, self.inside = state_dict["spikes"], state_dict["inside"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        loss = float(pl_module.last["ce"])
        line = self.line()
        leaps = line is not None and loss > line
        if leaps and not self.inside:
            self.spikes += 1
            self._tell(trainer, loss, batch)
        if not leaps:  # a spike is no part of what is usual
            self.recent.append(loss)
        self.inside = leaps

    def line(self) -> float | None:
        """The loss above which a step is a spike; None until half a window has been seen."""
        if len(self.recent) < self.window // 2:
            return None
        median = statistics.median(self.recent)
        spread = SIGMA * statistics.median(abs(value - median) for value in self.recent)
        return median + max(self.deviations * spread, self.least)

    def _tell(self, trainer: Trainer, loss: float, batch: Any) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({"train/spikes": float(self.spikes)}, step)
        if trainer.is_global_zero:
            usual = statistics.median(self.recent)
            samples = "" if batch.samples is None else f"; samples {batch.samples[:4].tolist()}..."
            print(f"loss spike at step {step:,}: {loss:.3f} after {usual:.3f}{samples}", file=sys.stderr)
