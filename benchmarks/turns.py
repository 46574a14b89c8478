"""Processor time of a step, ways of training against each other: fresh processes in turn, steps timed in blocks.

A step is what happens between two askings for a batch: hooks, logging and bookkeeping count, start-up and the closing
evaluation do not. A process tells its median block, one block being long enough for each to have its share of steps
that are logged; its first, which pays for allocation, is left out. All ways ask `clocked` batches.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Shape = dict[str, int]  # "steps" among them
Way = Callable[[Shape], float | None]  # trains; None is for its clocked steps, a number for what it measured itself
Times = dict[str, list[float]]  # seconds a step by way, a process each, pair by pair

ASKED: list[float] = []


def clocked(source: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same batches; when each was asked for stands in `ASKED`."""

    def ask(*arguments: Any) -> Iterator[Any]:
        for batch in source(*arguments):
            yield batch
            ASKED.append(time.process_time())

    return ask


def train(overrides: list[str]) -> None:
    """The whole train.py, its batches clocked."""
    from kleiber.imports import import_lightning

    import_lightning()
    import kleiber.stage
    from kleiber.launch import main

    kleiber.stage.stream = clocked(kleiber.stage.stream)
    with tempfile.TemporaryDirectory() as root:
        assert main([f"root={root}", *overrides]) == 0


def median_block(block: int) -> float:
    """The median block's seconds a step."""
    return statistics.median((b - a) / block for a, b in itertools.pairwise(ASKED[block::block]))


def measured(script: str, way: str, shape: str, steps: int) -> float:
    """Seconds of processor time of a step, in a fresh process."""
    command = [sys.executable, script, f"--way={way}", f"--shape={shape}", f"--steps={steps}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def in_turn(
    script: str, about: str | None, shapes: Mapping[str, Shape], ways: Mapping[str, Way], block: int
) -> dict[str, Times]:
    """The times of `ways`, two or more, by shape, as the command line of `script` asks; none in a measured process.

    about  the text of --help
    block  steps that are timed together
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes, help="one of them alone")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, help=f"of each process, in place of the shape's; at least {3 * block}")
    parser.add_argument("--way", choices=ways, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.way:
        own = ways[a.way](shapes[a.shape] | {"steps": a.steps})
        print(json.dumps(median_block(block) if own is None else own))
        return {}
    if a.steps is not None and a.steps < 3 * block:
        parser.error(f"--steps {a.steps}: at least {3 * block}, three blocks")
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Times] = {}
    for shape in [a.shape] if a.shape else shapes:
        measured(script, next(iter(ways)), shape, 3 * block)  # builds the data cache, so that no measured run does
        found[shape] = pairs(script, list(ways), shape, a.steps or shapes[shape]["steps"], a.pairs)
    return found


def pairs(script: str, ways: list[str], shape: str, steps: int, number: int) -> Times:
    """A process of each way, `number` times, every other time in the reverse order."""
    times: Times = {way: [] for way in ways}
    for pair in range(number):
        for way in ways if pair % 2 == 0 else reversed(ways):
            times[way].append(measured(script, way, shape, steps))
        told = ", ".join(f"{way} {1e3 * values[-1]:.2f} ms" for way, values in times.items())
        print(f"{shape} pair {pair + 1}: {told}", flush=True)
    return times


def ratios(times: Times) -> list[float]:
    """The first way over the second, pair by pair."""
    one, two, *_ = times.values()
    return [a / b for a, b in zip(one, two, strict=True)]
