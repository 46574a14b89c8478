"""What watching the routing costs a step: processor time of the whole train.py of a mixture with callbacks.routing, as
it is by default, against the same without it (callbacks.routing=null; goal: less than 2 % more).

Steps are timed as in `overhead`, in blocks of 20, each with two rows of the callback, which writes one every 10 steps.
Fresh processes in turn, one thread; ratios are taken pair by pair, and their median and quartiles printed. A third
process of each round tells the time within the callback's own hook, which is steadier than a difference of two
processes, and blind to what the callback does to the rest of a step. `tiny` is the shape of `benchmarks/step.py`,
`study` the mixture of conf/study/sparsity.yaml, whose steps are so short that what is added to them shows. Run it on an
idle machine:

    python benchmarks/health.py --pairs 7
"""

import statistics
import time
from typing import Any

from step import SHAPES as SIZES
from step import options, quartiles
from turns import Shape, in_turn, ratios, train

SHAPES = {
    "tiny": {**SIZES["tiny"], "steps": 120},
    "study": {"width": 32, "depth": 2, "heads": 2, "context": 128, "rows": 8, "steps": 800},
}
BLOCK = 20


def on(shape: Shape, *more: str) -> None:
    """The mixture as train.py trains it."""
    train(["model=moe", *options(shape, shape["steps"]), "trainer.threads=1", "eval.every_steps=0", *more])


def off(shape: Shape) -> None:
    """The same with nobody who watches the routing."""
    on(shape, "callbacks.routing=null")


def inside(shape: Shape) -> float:
    """Seconds of processor time a step within the callback's hook."""
    from kleiber.imports import import_lightning

    import_lightning()
    from kleiber.callbacks.routing import RoutingHealth

    hook, spent = RoutingHealth.on_train_batch_end, 0.0

    def timed(self: RoutingHealth, trainer: Any, pl_module: Any, *_: Any) -> None:
        nonlocal spent
        began = time.process_time()
        hook(self, trainer, pl_module)
        spent += time.process_time() - began

    RoutingHealth.on_train_batch_end = timed
    on(shape)
    return spent / shape["steps"]


def main() -> None:
    rows = []
    for shape, times in in_turn(__file__, __doc__, SHAPES, {"on": on, "off": off, "inside": inside}, BLOCK).items():
        step, within = (statistics.median(times[way]) for way in ("off", "inside"))
        told = f"step without {1e3 * step:.2f} ms, within the hook {1e6 * within:.0f} us ({within / step:.2%} of it)"
        rows.append(f"{shape}: on / off {quartiles(ratios(times))}, {told}")
    if rows:  # a measured process has told its own number
        print(*rows, sep="\n")


if __name__ == "__main__":
    main()
