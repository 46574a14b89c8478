"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass


def warmup_factor(step: int, total: int, warmup_steps: int) -> float:
    """Linear rise over `warmup_steps` steps, at most a fifth of the run; 1 afterwards.

    A number of steps and not a share of the run, so that runs of any length share their beginning (Porian et al. 2024,
    arXiv:2406.19146, section 3.2, on what a warm-up that is too long for a small model does to a law).
    """
    return min(1.0, (step + 1) / max(1, min(warmup_steps, total // 5)))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"schedule.{name}={value} is a share of the run: give a number between 0 and 1")


def _check_steps(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"schedule.warmup_steps={warmup_steps}: give a number of optimizer steps, at least 0")


@dataclass(frozen=True)
class Constant:
    """Warm-up, then a constant rate."""

    warmup_steps: int = 100

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)

    def __call__(self, step: int, total: int) -> float:
        return warmup_factor(step, total, self.warmup_steps)


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable, decay: linear to `final` over the last `decay` share of the run.

    Hu et al. 2024, arXiv:2404.06395; a linear fall in place of their exponential one: Hägele et al. 2024,
    arXiv:2405.18392, find it at least as good.
    """

    warmup_steps: int = 100
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)
        for name in ("decay", "final"):
            _check_share(name, getattr(self, name))

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        left = (total - step) / max(1.0, self.decay * total)
        return rise * (self.final + (1 - self.final) * min(1.0, left))

    def branch_step(self, total: int) -> int:
        """Steps whose rate does not depend on `total`: a longer run can be left there for a decay of its own."""
        return total - max(1, math.ceil(self.decay * total))


@dataclass(frozen=True)
class Cosine:
    """Warm-up, then half a cosine to `final` at the last step; honest only when `total` is the real horizon."""

    warmup_steps: int = 100
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)
        _check_share("final", self.final)

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / total)))
