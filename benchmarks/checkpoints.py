"""What a checkpoint every ten steps adds to a step: wall time of train.py with and without, in blocks in turn.

A thread writes the checkpoints beside the steps, so the clock on the wall counts here, and a second core is needed to
see it. One thread trains; run it on an idle machine:

    python benchmarks/checkpoints.py --processes 3
"""

import time

from turns import Blocks, Shape, compare, train

SHAPES = {  # named after the time of a step on the machine that the numbers in docs/speed.md are from
    "25ms": {"width": 64, "depth": 2, "context": 128, "batch": 2048, "steps": 805},
    "150ms": {"width": 256, "depth": 4, "context": 128, "batch": 2048, "steps": 245},
}
EVERY, BLOCK = 10, 20


def measure(shape: Shape) -> tuple[Blocks, Blocks]:
    """Blocks with a checkpoint every ten steps, and blocks without any after each of them."""
    from kleiber.training.callbacks.fault_tolerance import Checkpoints

    saving, planned = True, Checkpoints.is_planned

    def begin(number: int) -> None:
        nonlocal saving
        saving = number % 2 == 0

    Checkpoints.is_planned = lambda self, step: saving and planned(self, step)
    run = [
        f"model.width={shape['width']}", f"model.depth={shape['depth']}", f"model.context={shape['context']}",
        f"batch.tokens={shape['batch']}", f"budget.steps={shape['steps']}", "trainer.threads=1", "logger=csv",
        "eval.every_steps=0", "eval.tokens=4096", f"callbacks.checkpoints.every={EVERY}", "callbacks.samples=null",
    ]  # fmt: skip
    blocks = train(run, BLOCK, begin, time.perf_counter)
    return blocks[::2], blocks[1::2]


if __name__ == "__main__":
    compare(__file__, __doc__, SHAPES, measure)
