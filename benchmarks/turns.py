"""Processor time of a step of train.py against another way of making it, both in turn within one process.

A run's steps are timed in blocks, and what is compared stands between or alternates with them, so that both have the
same memory, the same machine at the same time, and the same temperature: processes with equal work differ by several
percent here, which is more than what is to be seen. A step is what happens between two askings for a batch: hooks,
logging and bookkeeping count, start-up and the closing evaluation do not. Processor time counts every thread; a
benchmark whose work is beside the steps takes another clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import bootstrap

Shape = dict[str, int]  # "steps" among them
Blocks = list[float]  # seconds of processor time a step


def in_blocks(
    source: Callable[..., Iterator[Any]],
    block: int,
    begin: Callable[[int], None],
    blocks: Blocks,
    clock: Callable[[], float],
) -> Any:
    """The same batches; `begin(number)` is called before each block of steps, its own time not counted."""

    def ask(*arguments: Any) -> Iterator[Any]:
        began = None
        for number, batch in enumerate(source(*arguments)):
            if number % block == 0:
                if began is not None:
                    blocks.append((clock() - began) / block)
                begin(number // block)
                began = clock()
            yield batch

    return ask


def train(
    overrides: list[str], block: int, begin: Callable[[int], None], clock: Callable[[], float] = time.process_time
) -> Blocks:
    """The whole train.py, timed in blocks of steps."""
    from kleiber.training.lightning import import_lightning

    import_lightning()
    import kleiber.runs.stage
    from kleiber.launch.main import main

    blocks: Blocks = []
    kleiber.runs.stage.stream = in_blocks(kleiber.runs.stage.stream, block, begin, blocks, clock)
    with tempfile.TemporaryDirectory() as root:
        assert main([f"root={root}", *overrides]) == 0
    return blocks


def compare(
    script: str, about: str | None, shapes: Mapping[str, Shape], measure: Callable[[Shape], tuple[Blocks, Blocks]]
) -> None:
    """Runs `measure`, which gives blocks of one way and of the other, in fresh processes as the command line of
    `script` asks, and prints the ratio of neighbouring blocks: the median, with a 95 % interval from resampling them.

    about  the text of --help
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes, help="one of them alone")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each process, in place of the shape's")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(shapes[a.shape] | {"steps": a.steps})))
        return
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["OMP_NUM_THREADS"] = "1"
    for shape in [a.shape] if a.shape else shapes:
        steps, pairs = a.steps or shapes[shape]["steps"], []
        for number in range(a.processes):
            command = [sys.executable, script, "--measure", f"--shape={shape}", f"--steps={steps}"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            own = list(zip(*json.loads(out.splitlines()[-1]), strict=False))[1:]  # the first blocks pay for allocation
            if not own:
                parser.error(f"--steps {steps}: too few for two blocks of each way")
            print(f"{shape} process {number + 1}: {told(own)}", flush=True)
            pairs += own
        print(f"{shape}: {told(pairs)}", flush=True)


def told(pairs: list[tuple[float, float]]) -> str:
    """Their ratio, and the time of the step that is the measure."""
    ratios, step = [one / two for one, two in pairs], statistics.median(two for _, two in pairs)
    middle = f"{statistics.median(ratios):.3f}"
    if len(ratios) > 1:
        interval = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        middle += f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{middle} of a step of {1e3 * step:.2f} ms, {len(pairs)} pairs of blocks"
