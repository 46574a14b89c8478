"""Learning-rate schedules: functions of the step that return a factor of the peak rate, without state to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


def warmup_factor(step: int, total: int, warmup_steps: int) -> float:
    """Linear rise over `warmup_steps` steps, at most a fifth of the run; 1 afterwards.

    The warm-up is a number of steps, not a share of the run, so that runs of any length start alike (Porian et al.
    2024, arXiv:2406.19146, section 3.2, on how a warm-up that is too long for small models biases a law).
    """
    return min(1.0, (step + 1) / max(1, min(warmup_steps, total // 5)))


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"schedule.{name}={value} must be from 0 to 1")


def _check_steps(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"schedule.warmup_steps={warmup_steps} must be >= 0, in optimizer steps")


class Schedule:
    """The learning rate at `step` of `total` steps, over the peak rate."""

    def __call__(self, step: int, total: int) -> float:
        raise NotImplementedError

    def branch_step(self, total: int) -> int | None:
        """The last step that longer runs share, where a branch can start its decay; None where there is none."""
        return None

    def limit_warmup(self, steps: int) -> Schedule:
        """Returns the schedule with at most `steps` steps of warm-up. The default has no warm-up to shorten."""
        return self


@dataclass(frozen=True)
class Constant(Schedule):
    """Warm-up, then a constant rate."""

    warmup_steps: int = 100

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)

    def __call__(self, step: int, total: int) -> float:
        return warmup_factor(step, total, self.warmup_steps)


@dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay: linear to `final` over the last `decay` share of the run.

    Hu et al. 2024, arXiv:2404.06395, with a linear decay in place of their exponential one, which Hägele et al. 2024,
    arXiv:2405.18392, find at least as good.
    """

    warmup_steps: int = 100
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)
        _check_shares(decay=self.decay, final=self.final)

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        left = (total - step) / max(1.0, self.decay * total)
        return rise * (self.final + (1 - self.final) * min(1.0, left))

    def branch_step(self, total: int) -> int:
        """The step at which the decay begins: until then, rates do not depend on `total`."""
        return total - max(1, math.ceil(self.decay * total))

    def limit_warmup(self, steps: int) -> WSD:
        """Returns the schedule with at most `steps` steps of warm-up."""
        return replace(self, warmup_steps=min(self.warmup_steps, steps))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Warm-up, then half a cosine to `final` at the last step. The rates of all steps depend on `total`."""

    warmup_steps: int = 100
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)
        _check_shares(final=self.final)

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / total)))
