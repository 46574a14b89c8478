"""Short trainings of every choice on a device, compared with the same trainings on the CPU in fp32.

Needs no pytest: `benchmarks/gpu.py` and the tests beside this module call the same functions. Rows are plain data.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from choices import CHOICES, NEEDS, split
from small_run import TINY

# Largest difference of the training loss (nats per token) that counts as agreement. In "fp32" TF32 is switched off for
# the test; "tf32" is trainer.precision=32 as users get it.
TOLERANCES = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 2e-2}
KEYS = {"fp32": "32", "tf32": "32", "bf16": "bf16"}  # values of trainer.precision
LONG = ["model.depth=2", "model.context=64", "data.max_bytes=200_000"]
GROUPS = ("adapter", "model", "objective", "optimizer", "privacy", "retention")
COMPARED = [choice for choice in CHOICES if choice.startswith(tuple(f"{group}/" for group in GROUPS))]
RANDOM = {"model/router/noisy": "random numbers of the device", "privacy/dp_sgd": "random numbers of the device"}
RANDOM["objective/grpo"] = "the model writes the answers, and a rounded logit can change a token"
QUIET = ["callbacks.log.every=1", "callbacks.checkpoints.every=0", "eval.every_steps=0", "eval.tokens=1024"]


class TrainingFailed(Exception):
    """A training that ended with an error; the message is its last line of output."""


@dataclass
class Device:
    """Where to train (cuda or cpu), and the folder for runs; keeps the losses of the CPU."""

    name: str
    root: Path
    losses: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    @property
    def accelerator(self) -> str:
        return "gpu" if self.name == "cuda" else "cpu"

    def reference(self, overrides: Sequence[str]) -> list[float]:
        """Returns the losses of the steps on the CPU in fp32, trained once for the same overrides."""
        key = tuple(overrides)
        if key not in self.losses:
            self.losses[key] = train_losses([*overrides, "trainer.accelerator=cpu", "trainer.precision=32"], self.root)
        return self.losses[key]


def train(overrides: Sequence[str], root: Path) -> Path:
    """Trains in this process and returns the folder of the run. Raises TrainingFailed."""
    from kleiber.launch import main

    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code, folder = main.train([*overrides, f"root={root}"])
    except Exception as error:
        raise TrainingFailed(f"{type(error).__name__}: {error}") from error
    if code != 0 or folder is None:
        lines = [line for line in output.getvalue().splitlines() if line.strip()]
        raise TrainingFailed(lines[-1] if lines else f"exit code {code}")
    return folder


def train_losses(overrides: Sequence[str], root: Path) -> list[float]:
    """Returns the training loss of each step, in nats per token. Raises TrainingFailed."""
    folder = train([*overrides, *QUIET], root)
    return [row["train/loss"] for row in read_rows(folder) if "train/loss" in row]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the complete rows of metrics.jsonl; [] where there is none yet."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def compare(device: Device, overrides: Sequence[str], precision: str) -> dict[str, Any]:
    """Trains on the device and compares the losses of all steps with those on the CPU.

    Returns {"status": "ok", "differs" or "failed", "gap": of the last step, "largest_gap": of all steps, ...}.
    """
    row: dict[str, Any] = {"precision": precision, "tolerance": TOLERANCES[precision]}
    keys = [f"trainer.accelerator={device.accelerator}", f"trainer.precision={KEYS[precision]}"]
    try:
        expected = device.reference(overrides)
        with full_precision() if precision == "fp32" else contextlib.nullcontext():
            losses = train_losses([*overrides, *keys], device.root / precision)
    except TrainingFailed as error:
        return row | {"status": "failed", "error": str(error)}
    if len(losses) != len(expected):
        return row | {"status": "failed", "error": f"{len(losses)} steps instead of {len(expected)}"}
    gaps = [abs(loss - other) for loss, other in zip(losses, expected, strict=True)]
    row |= {"steps": len(gaps), "loss": losses[-1], "cpu_loss": expected[-1], "gap": gaps[-1], "largest_gap": max(gaps)}
    return row | {"status": "ok" if max(gaps) <= TOLERANCES[precision] else "differs"}


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Context in which fp32 products are not rounded to TF32, whatever a trainer sets."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with patch.object(torch, "set_float32_matmul_precision"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def dense_and_mixture(
    device: Device, precisions: Sequence[str] = tuple(TOLERANCES), steps: int = 50
) -> Iterator[dict[str, Any]]:
    """Yields a comparison of model=gpt and model=moe for each precision, with trainer=gpu on a GPU."""
    plain = [override for override in TINY if not override.startswith("trainer=")]
    for model in ("gpt", "moe"):
        for precision in precisions:
            overrides = [*plain, f"trainer={device.accelerator}", f"model={model}", *LONG, f"budget.steps={steps}"]
            yield {"choice": f"model/{model}", **compare(device, overrides, precision)}


def every_choice(
    device: Device, choices: Sequence[str] = COMPARED, precisions: Sequence[str] = ("fp32", "bf16")
) -> Iterator[dict[str, Any]]:
    """Yields a comparison over two steps (four of each stage of a chain) of each choice for each precision."""
    for choice in choices:
        for precision in precisions:
            row = compare(device, overrides_of(choice, device), precision)
            note = {"note": RANDOM[choice]} if choice in RANDOM else {}
            yield {"choice": choice, **row, **note}


def overrides_of(choice: str, device: Device) -> list[str]:
    """Returns the overrides of a tiny run of a choice; a teacher or start is a run of the CPU, trained here."""
    group, name = split(choice)
    needed = NEEDS.get(choice, [])
    if any("RUN" in override for override in needed):
        start = train([*TINY, *QUIET, "callbacks.checkpoints.every=1", "trainer.max_steps=2"], device.root / "start")
        needed = [override.replace("RUN", str(start)) for override in needed]
    steps = 4 if group == "retention" else 2  # a penalty changes the loss of the step after next
    has_data = any(override.startswith("data=") for override in needed)
    plain = [override for override in TINY if not (has_data and override.startswith("data"))]
    return [*plain, *needed, f"{group}={name}", f"trainer.max_steps={steps}"]
