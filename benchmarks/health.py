"""What watching the routing costs a step: processor time of the whole train.py of a mixture in steps that
callbacks.routing watches, as it does by default, against steps of the same run that it does not (goal: less than 2 %
more).

The callback is on in every other block of 20 steps, in each of which it writes two rows (one every 10 steps). `tiny` is
the shape of `benchmarks/step.py`, `study` the mixture of conf/study/sparsity.yaml, whose steps are so short that what
is added to them shows. One thread; run it on an idle machine:

    python benchmarks/health.py --processes 5
"""

from typing import Any

from step import SHAPES as SIZES
from step import options
from turns import Blocks, Shape, compare, train

SHAPES = {
    "tiny": {**SIZES["tiny"], "steps": 400},
    "study": {"width": 32, "depth": 2, "heads": 2, "context": 128, "rows": 8, "steps": 1600},
}
BLOCK = 20


def measure(shape: Shape) -> tuple[Blocks, Blocks]:
    """Blocks that the callback watched, and blocks that it did not."""
    from kleiber.training.lightning import import_lightning

    import_lightning()
    from kleiber.training.callbacks.log import RoutingHealth

    hook, watching = RoutingHealth.on_train_batch_end, True

    def switched(self: RoutingHealth, trainer: Any, pl_module: Any, *_: Any) -> None:
        if watching:
            hook(self, trainer, pl_module)

    def begin(number: int) -> None:
        nonlocal watching
        watching = number % 2 == 0

    RoutingHealth.on_train_batch_end = switched
    run = ["model=moe", *options(shape, shape["steps"]), "trainer.threads=1", "eval.every_steps=0"]
    blocks = train(run, BLOCK, begin)
    return blocks[::2], blocks[1::2]


if __name__ == "__main__":
    compare(__file__, __doc__, SHAPES, measure)
