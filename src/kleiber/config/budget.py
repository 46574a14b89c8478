"""The training budget: tokens, FLOPs, tokens per parameter, or steps, converted to optimizer steps.

At most one of the four is set; none means 20 tokens per active parameter (Hoffmann et al. 2022, arXiv:2203.15556).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

SUFFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
NUMBER = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)([kKMBGT]?)")
DEFAULT_RATIO = 20.0


def quantity(value: int | float | str) -> float:
    """Converts a number, or text such as `20M`, `1.5B`, `2e7`, to a float.

    Raises ValueError for other text, and for a number that is not finite and positive.
    """
    number = float(value) if isinstance(value, int | float) else _parse(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} must be a positive number such as 20000000, 2e7, 20M or 1.5B")
    return number


def _parse(text: str) -> float:
    match = NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} must be a number such as 20000000, 2e7, 20M or 1.5B")
    return float(match[1].replace("_", "")) * SUFFIXES[match[2]]


@dataclass(frozen=True)
class Budget:
    """A training budget; at most one field is set.

    tokens  training tokens, repeats included
    flops   training FLOPs of the model (forward and backward, without recomputation)
    ratio   training tokens per active parameter
    steps   optimizer steps

    stop_at_loss (nats per token) may be combined with any of them: training ends early when every validation loss of
    the stage's own tasks has reached it. The schedule keeps the budget's horizon.
    """

    tokens: int | float | str | None = None
    flops: int | float | str | None = None
    ratio: int | float | str | None = None
    steps: int | float | str | None = None
    stop_at_loss: int | float | None = None

    def __post_init__(self) -> None:
        limits = self.limits()
        if len(limits) > 1:
            names = " and ".join(f"budget.{name}={value}" for name, value in limits.items())
            raise ValueError(f"{names} exclude each other: set only one")
        for name, value in limits.items():
            try:
                quantity(value)
            except ValueError as error:
                raise ValueError(f"budget.{name}: {error}") from None
        if self.stop_at_loss is not None and self.stop_at_loss <= 0:
            raise ValueError(f"budget.stop_at_loss={self.stop_at_loss} must be > 0 nats per token")

    def limits(self) -> dict[str, int | float | str]:
        """The fields that are set, without stop_at_loss."""
        values = {"tokens": self.tokens, "flops": self.flops, "ratio": self.ratio, "steps": self.steps}
        return {name: value for name, value in values.items() if value is not None}

    def num_steps(self, *, batch_tokens: int, active_params: int, flops_per_token: float) -> int:
        """Returns the number of optimizer steps, rounded to the nearest and at least 1.

        batch_tokens     tokens of an optimizer step
        active_params    parameters that a token uses
        flops_per_token  training FLOPs of a token, forward and backward
        """
        if self.steps is not None:
            return max(1, round(quantity(self.steps)))
        if self.tokens is not None:
            tokens = quantity(self.tokens)
        elif self.flops is not None:
            tokens = quantity(self.flops) / flops_per_token
        else:
            tokens = quantity(DEFAULT_RATIO if self.ratio is None else self.ratio) * active_params
        return max(1, round(tokens / batch_tokens))
