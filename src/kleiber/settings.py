"""The keys of train.yaml that are plain values or plain nodes, with their types: what a config is checked against.

Nodes with a `_target_` are checked against the signature of their class instead. Nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kleiber.budget import Budget, quantity


@dataclass(frozen=True)
class BatchSize:
    """The batch of one optimizer step.

    tokens  of one optimizer step over all ranks, where its rows are full; a pair has two rows
    micro   sequences at once on one device; "auto" finds what fits
    """

    tokens: int | float | str = 4096
    micro: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if quantity(self.tokens) % 1:
            raise ValueError(f"batch.tokens={self.tokens} is not a whole number of tokens")
        if self.micro != "auto" and self.micro < 1:
            raise ValueError(f"batch.micro={self.micro}: write auto, or a number of sequences from 1")


@dataclass(frozen=True)
class Evaluation:
    """When to validate, and on how much.

    every_steps   None means four times a stage, 0 after its last step only
    tokens        targets of each task
    watch_tokens  targets of each task, which are scored at steps 1, 2, 4, 8, ... of a later stage too
    """

    every_steps: int | None = None
    tokens: int | float | str | None = "1M"
    watch_tokens: int | float | str = 32768

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 0:
            raise ValueError(f"eval.every_steps={self.every_steps}: write null, 0, or a number of steps from 1")
        for name, value in (("tokens", self.tokens), ("watch_tokens", self.watch_tokens)):
            try:
                if value is not None:
                    quantity(value)
            except ValueError as error:
                raise ValueError(f"eval.{name}: {error}") from None


PLAIN: dict[str, Any] = {
    "name": str,
    "root": str,
    "seed": int,
    "resume": str,
    "dry_run": bool | str,
    "batch": BatchSize,
    "budget": Budget,
    "eval": Evaluation,
}
NODES = ("model", "data", "objective", "trainer", "optimizer", "schedule", "callbacks", "logger", "launcher")
OPTIONAL = ("init", "retention", "adapter", "stages", "design", "study", "experiment")
TOP_LEVEL = (*NODES, *PLAIN, *OPTIONAL)
