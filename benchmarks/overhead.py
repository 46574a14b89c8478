"""What Lightning, callbacks and logging add to a step: processor time of the whole train.py against a bare loop around
the same model, loss, batches and optimizer.

A step is the difference between a run of 2 n steps and one of n steps, divided by n: start-up and the closing
evaluation cancel, everything that happens between two steps counts. One thread, fresh processes in turn; ratios are
taken pair by pair, and their median and quartiles printed:

    python benchmarks/overhead.py --shape 5ms --pairs 5
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from step import quartiles

HERE = Path(__file__).parent
SHAPES = {  # named after the time of a step on the machine that the numbers in the README are from
    "5ms": {"width": 32, "depth": 2, "context": 128, "batch": 512, "steps": 2000},
    "25ms": {"width": 64, "depth": 2, "context": 128, "batch": 2048, "steps": 500},
}


def options(shape: dict[str, int]) -> list[str]:
    return [
        f"model.width={shape['width']}", f"model.depth={shape['depth']}", f"model.context={shape['context']}",
        f"batch.tokens={shape['batch']}", "trainer.threads=1", "logger=csv", "eval.every_steps=0", "eval.tokens=4096",
        "callbacks.checkpoints.every=0", "callbacks.samples=null",
    ]  # fmt: skip


def ours(shape: dict[str, int], steps: int) -> float:
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, HERE.parent / "train.py", f"root={root}", f"budget.steps={steps}", *options(shape)]
        return processor_seconds(command)


def bare(shape: dict[str, int], steps: int) -> float:
    flags = [f"--{name}={value}" for name, value in {**shape, "steps": steps}.items()]
    return processor_seconds([sys.executable, __file__, "--loop", *flags])


def processor_seconds(command: list[str | Path]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loop(shape: dict[str, int]) -> None:
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
    batches = stream(corpus.train, 0, 0, shape["batch"] // shape["context"])
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
    parser.add_argument("--shape", choices=SHAPES, default="5ms")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    for name in SHAPES["5ms"]:
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.loop:
        return loop({name: getattr(a, name) for name in SHAPES["5ms"]})
    os.environ["WANDB_MODE"] = "disabled"
    shape = SHAPES[a.shape]
    steps = shape["steps"]
    ours(shape, 1)  # builds the data cache, so that no measured run does
    ratios, times = [], []
    for number in range(a.pairs):
        taken = {way.__name__: (way(shape, 2 * steps) - way(shape, steps)) / steps for way in (ours, bare)}
        ratios.append(taken["ours"] / taken["bare"])
        times.append(taken["bare"])
        told = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in taken.items())
        print(f"pair {number + 1}: {told}, ratio {ratios[-1]:.3f}", flush=True)
    print(f"{a.shape}: ours / bare {quartiles(ratios)}, bare step {1e3 * sorted(times)[len(times) // 2]:.2f} ms")


if __name__ == "__main__":
    main()
