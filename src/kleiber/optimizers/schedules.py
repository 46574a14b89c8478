"""Learning-rate schedules: functions that return the learning rate at a step, as a factor of the peak rate.

A schedule has no state, so a resumed run needs only the number of its step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from kleiber.types import Natural, Share


def warmup_factor(step: int, total: int, warmup_steps: int) -> float:
    """Returns a factor that rises linearly to 1 over `warmup_steps` steps, or over a fifth of the run if that is less.

    The warm-up is a number of steps, not a share of the run, so runs of all lengths start in the same way. A warm-up
    that is too long for small models biases a scaling law (Porian et al. 2024, arXiv:2406.19146, section 3.2).
    """
    return min(1.0, (step + 1) / max(1, min(warmup_steps, total // 5)))


class Schedule:
    """A function of `step` and the `total` steps of a stage that returns the learning rate over the peak rate."""

    def __call__(self, step: int, total: int) -> float:
        raise NotImplementedError

    def branch_step(self, total: int) -> int | None:
        """Returns the last step at which longer runs have the same weights, where a branch can decay; None for none."""
        return None

    def limit_warmup(self, steps: int) -> Schedule:
        """Returns the schedule with at most `steps` steps of warm-up. The default has no warm-up to shorten."""
        return self


@dataclass(frozen=True)
class Warmup(Schedule):
    """Base class of schedules that begin with a warm-up over `warmup_steps` optimizer steps."""

    warmup_steps: Natural = 100

    def limit_warmup(self, steps: int) -> Self:
        """Returns the schedule with at most `steps` steps of warm-up."""
        return replace(self, warmup_steps=min(self.warmup_steps, steps))


@dataclass(frozen=True)
class Constant(Warmup):
    """Warm-up over `warmup_steps` optimizer steps, then a constant rate."""

    def __call__(self, step: int, total: int) -> float:
        return warmup_factor(step, total, self.warmup_steps)


@dataclass(frozen=True)
class WSD(Warmup):
    """Warm-up, stable rate, linear decay (Hu et al. 2024, arXiv:2404.06395).

    warmup_steps  optimizer steps of the warm-up
    decay         share of the steps over which the rate decays, at the end of the run
    final         rate after the last step, as a share of the peak rate

    The decay is linear instead of exponential: at least as good according to Hägele et al. 2024, arXiv:2405.18392.
    """

    decay: Share = 0.2
    final: Share = 0.0

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        left = (total - step) / max(1.0, self.decay * total)
        return rise * (self.final + (1 - self.final) * min(1.0, left))

    def branch_step(self, total: int) -> int:
        """Returns the step at which the decay begins; rates before it do not depend on `total`."""
        return total - max(1, math.ceil(self.decay * total))


@dataclass(frozen=True)
class Cosine(Warmup):
    """Warm-up, then half a cosine down to the share `final` after the last step; every rate depends on `total`."""

    final: Share = 0.1

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / total)))


def sparkline(schedule: Schedule, steps: int, width: int = 60) -> str:
    """Draws a schedule over `steps` steps as a row of `width` bars."""
    bars = " ▁▂▃▄▅▆▇█"
    places = [math.floor(i * (steps - 1) / (width - 1)) for i in range(width)]
    return "".join(bars[math.ceil(schedule(step, steps) * (len(bars) - 1))] for step in places)
