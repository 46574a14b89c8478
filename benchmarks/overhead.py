"""What Lightning, callbacks and logging add to a step: processor time of the whole train.py against a bare loop around
the same model, loss, batches and optimizer.

A step is what happens between two askings for a batch, which both ways ask of the same function: hooks, logging and
bookkeeping count, start-up and the closing evaluation do not. Steps are timed in blocks of 25, so that each has its
share of logged ones; a process tells its median block. One thread, fresh processes in turn; ratios are taken pair by
pair, and their median and quartiles printed, one row for each size of step:

    python benchmarks/overhead.py --pairs 5
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from step import quartiles

HERE = Path(__file__).parent
SHAPES = {  # named after the time of a step on the machine that the numbers in the README are from
    "5ms": {"width": 32, "depth": 2, "context": 128, "batch": 512, "steps": 825},
    "25ms": {"width": 64, "depth": 2, "context": 128, "batch": 2048, "steps": 225},
}
BLOCK = 25


def options(shape: dict[str, int]) -> list[str]:
    return [
        f"model.width={shape['width']}", f"model.depth={shape['depth']}", f"model.context={shape['context']}",
        f"batch.tokens={shape['batch']}", f"budget.steps={shape['steps']}", "trainer.threads=1", "logger=csv",
        "eval.every_steps=0", "eval.tokens=4096", "callbacks.checkpoints.every=0", "callbacks.samples=null",
    ]  # fmt: skip


def measured(way: str, shape: dict[str, int]) -> float:
    """Seconds of processor time of a step, in a fresh process."""
    flags = [f"--{name}={value}" for name, value in shape.items()]
    command = [sys.executable, __file__, f"--way={way}", *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def clocked(source: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same batches; when each was asked for stands in `ASKED`."""

    def ask(*arguments: Any) -> Iterator[Any]:
        for batch in source(*arguments):
            yield batch
            ASKED.append(time.process_time())

    return ask


ASKED: list[float] = []


def tell() -> None:
    """Prints the median block's seconds a step; the first block, which pays for allocation, is left out."""
    blocks = [(b - a) / BLOCK for a, b in itertools.pairwise(ASKED[BLOCK::BLOCK])]
    print(json.dumps(statistics.median(blocks)))


def ours(shape: dict[str, int]) -> None:
    """The whole train.py, its batches clocked."""
    from kleiber.imports import import_lightning

    import_lightning()
    import kleiber.stage
    from kleiber.launch import main

    kleiber.stage.stream = clocked(kleiber.stage.stream)
    with tempfile.TemporaryDirectory() as root:
        assert main([f"root={root}", *options(shape)]) == 0


def bare(shape: dict[str, int]) -> None:
    """The same step by hand: forward, backward, division by the tokens, clipping, rate, AdamW."""
    import torch

    from kleiber.data.builtin import Builtin
    from kleiber.data.sampler import stream
    from kleiber.models.transformer import Transformer
    from kleiber.objectives.clm import CLM
    from kleiber.optim import WSD, AdamW
    from kleiber.trainer import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    corpus = Builtin("docs").prepare(shape["context"])
    model: Any = Transformer(corpus.tokenizer.vocab_size, shape["depth"], shape["width"], context=shape["context"])
    settings, schedule, objective = AdamW(), WSD(), CLM()
    optimizer = settings.build(model, model.roles(), model.parametrization.lr_scale)
    batches = clocked(stream)(corpus.train, 0, 0, shape["batch"] // shape["context"])
    parameters = list(model.parameters())
    for step in range(shape["steps"]):
        loss = objective(model, next(batches))
        loss.total.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_div_(gradients, loss.tokens.item())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * group["lr_scale"] * schedule(step, shape["steps"])
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="one of the two alone")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--way", choices=["ours", "bare"], help=argparse.SUPPRESS)
    for name in SHAPES["5ms"]:
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.way:
        {"ours": ours, "bare": bare}[a.way]({name: getattr(a, name) for name in SHAPES["5ms"]})
        return tell()
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["OMP_NUM_THREADS"] = "1"
    measured("ours", {**SHAPES["5ms"], "steps": 3 * BLOCK})  # builds the data cache, so that no measured run does
    rows = []
    for shape in [a.shape] if a.shape else SHAPES:
        times: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in range(a.pairs):
            order = ("ours", "bare") if number % 2 == 0 else ("bare", "ours")
            for way in order:
                times[way].append(measured(way, SHAPES[shape]))
            told = ", ".join(f"{way} {1e3 * values[-1]:.2f} ms" for way, values in times.items())
            print(f"{shape} pair {number + 1}: {told}", flush=True)
        ratios = [one / two for one, two in zip(times["ours"], times["bare"], strict=True)]
        rows.append(
            f"{shape}: ours / bare {quartiles(ratios)}, bare step {1e3 * statistics.median(times['bare']):.2f} ms"
        )
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
