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

    tokens  target tokens of one optimizer step, over all ranks
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
    """When to validate, and on how much: `every_steps` None means at the end of a stage only."""

    every_steps: int | None = None
    tokens: int | float | str | None = "1M"

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"eval.every_steps={self.every_steps}: write null, or a number of steps from 1")
        if self.tokens is not None:
            quantity(self.tokens)


@dataclass(frozen=True)
class Trainer:
    """Hardware and precision. It changes neither the data nor, beyond rounding, the result.

    devices       processes, one device each
    strategy      how ranks share the work; None means ddp when there is more than one
    threads       CPU threads of one process; None means the cores at hand, shared by the ranks
    max_steps     a cap on the optimizer steps of a stage; not a budget
    """

    accelerator: Literal["cpu", "gpu"] = "cpu"
    devices: int = 1
    strategy: Literal["ddp", "fsdp"] | None = None
    precision: int | str = 32
    threads: int | None = None
    compile: bool = False
    max_steps: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"trainer.devices={self.devices}: write a number from 1")
        if str(self.precision) not in ("32", "bf16", "64"):
            raise ValueError(f"trainer.precision={self.precision}: write 32, bf16 or 64")


PLAIN: dict[str, Any] = {
    "name": str,
    "root": str,
    "seed": int,
    "resume": str,
    "dry_run": bool,
    "batch": BatchSize,
    "budget": Budget,
    "eval": Evaluation,
    "trainer": Trainer,
}
NODES = ("model", "data", "objective", "optimizer", "schedule", "callbacks", "logger", "launcher")
OPTIONAL = ("init", "retention", "adapter", "stages", "design", "study", "experiment")
TOP_LEVEL = (*NODES, *PLAIN, *OPTIONAL)
