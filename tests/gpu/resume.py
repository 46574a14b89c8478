"""Trainings that are killed at a random step and continued, compared with trainings that are not.

Needs no pytest: `benchmarks/gpu.py` and the tests beside this module call the same functions.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agreement import Device, read_rows
from small_run import REPOSITORY, TINY, last_of_each

EVERY = 5  # steps between checkpoints
LIMIT = 300  # seconds of a process


class ProcessFailed(Exception):
    """A process of train.py that ended with an error; the message is its last line of output."""


def start(
    overrides: Sequence[str], root: Path, stdout: int | None = subprocess.PIPE, extension: Path | None = None
) -> subprocess.Popen[str]:
    """Starts train.py in a process that imports this checkout of kleiber, and an extension from its file if given."""
    places = [str(REPOSITORY / "src"), *([] if extension is None else [str(extension.parent)])]
    path = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    environment |= {} if extension is None else {"KLEIBER_EXTENSIONS": extension.stem}
    command = [sys.executable, str(REPOSITORY / "train.py"), *last_of_each(overrides), f"root={root}"]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for a process, and ends it when this one is interrupted. Raises ProcessFailed for another code than 0."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    if process.returncode:
        lines = [line for line in output.splitlines() if line.strip()]
        raise ProcessFailed(lines[-1] if lines else f"exit code {process.returncode}")


def run_folder(root: Path) -> Path | None:
    """Returns the folder of the only run below `root`, or None while there is none."""
    return next((path.parent for path in root.glob("*/*/config.yaml")), None)


def kill_after(process: subprocess.Popen[str], root: Path, step: int) -> int | None:
    """Kills a training once it has logged a step. Returns the last logged step, or None if it ended before."""
    deadline = time.monotonic() + LIMIT
    try:
        while process.poll() is None and time.monotonic() < deadline:
            folder = run_folder(root)
            logged = [row["step"] for row in read_rows(folder)] if folder else []
            if max(logged, default=0) >= step:
                process.kill()
                process.communicate()
                return max(logged)
            time.sleep(0.002)
    finally:
        process.kill()
    process.communicate()
    return None


def weight_gap(folder: Path, other: Path) -> tuple[bool, float]:
    """Returns whether the last checkpoints are equal to the bit, and the largest difference of a weight."""
    from safetensors.torch import load_file

    paths = [sorted(place.glob("stages/main/checkpoints/step-*"))[-1] for place in (folder, other)]
    hashes = [json.loads((path / "meta.json").read_text())["sha256"]["model.safetensors"] for path in paths]
    first, second = (load_file(path / "model.safetensors") for path in paths)
    gap = max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
    return hashes[0] == hashes[1], gap


def kill_and_continue(
    device: Device, steps: int = 100, modes: tuple[bool, ...] = (True, False), seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields for each value of trainer.deterministic how far a killed and continued training is from a whole one.

    The model is a mixture with dropout in bf16, so that routing and the random numbers of the device are resumed too.
    Without deterministic kernels a second whole training tells how much two of them differ anyway.
    """
    seed = random.randrange(1 << 16) if seed is None else seed
    for deterministic in modes:
        overrides = [
            *(override for override in TINY if not override.startswith("trainer=")),
            f"trainer={device.accelerator}", "trainer.precision=bf16", f"trainer.deterministic={deterministic}",
            "model=moe", "model.dropout=0.1", "model.depth=2", "model.context=64", f"budget.steps={steps}",
            "callbacks.log.every=1", f"callbacks.checkpoints.every={EVERY}", "eval.every_steps=0", "eval.tokens=1024",
            "callbacks.samples=null",
        ]  # fmt: skip
        overrides.remove("callbacks.samples.length=8")
        root = device.root / f"resume-{deterministic}"
        step = random.Random(seed).randrange(EVERY + 1, steps // 2)
        row: dict[str, Any] = {"deterministic": deterministic, "steps": steps, "seed": seed, "kill_after_step": step}
        try:
            finish(start(overrides, root / "whole"))
            row["killed_at_step"] = kill_after(start(overrides, root / "killed"), root / "killed", step)
            finish(start(overrides, root / "killed"))
            whole, killed = run_folder(root / "whole"), run_folder(root / "killed")
            assert whole is not None and killed is not None
            row["bit_identical"], row["largest_weight_gap"] = weight_gap(whole, killed)
            if not deterministic:
                finish(start(overrides, root / "again"))
                again = run_folder(root / "again")
                assert again is not None
                row["whole_runs_bit_identical"], row["whole_runs_weight_gap"] = weight_gap(whole, again)
        except ProcessFailed as error:
            yield row | {"status": "failed", "error": str(error)}
            continue
        if row["killed_at_step"] is None:
            yield row | {"status": "failed", "error": "the training ended before it was killed"}
        else:
            yield row | {"status": "ok" if row["bit_identical"] or not deterministic else "differs"}
