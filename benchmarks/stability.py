"""What watching the stability costs a step: processor time of the whole train.py in steps that callbacks.stability
measures, as it does by default, against steps of the same run that it does not (goal: at most 3 % more).

The callback measures in every other block of 50 steps, in each of which it looks inside the model once (every=50). The
per-step watch for spikes is on in all blocks. `default` is the default config, `study` the model of the studies on two
cores, whose steps are so short that what is added to them shows, `moe` a mixture of that size. One thread; run it on an
idle machine:

    python benchmarks/stability.py --processes 5
"""

from typing import Any

from turns import Blocks, Shape, compare, train

SHAPES = {
    "default": {"width": 128, "depth": 2, "heads": 2, "context": 256, "rows": 16, "steps": 600},
    "study": {"width": 32, "depth": 2, "heads": 2, "context": 128, "rows": 8, "steps": 2000},
    "moe": {"width": 32, "depth": 2, "heads": 2, "context": 128, "rows": 8, "steps": 1200, "experts": 8},
}
BLOCK = 50


def measure(shape: Shape) -> tuple[Blocks, Blocks]:
    """Blocks in which the callback measured, and blocks in which it did not."""
    from kleiber.training.lightning import import_lightning

    import_lightning()
    from step import options

    from kleiber.training.callbacks.stability import Stability

    build, watches = Stability.__init__, []

    def keep(self: Stability, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        watches.append(self)

    def begin(number: int) -> None:
        for watch in watches:
            watch.every = BLOCK if number % 2 == 0 else 10**9

    Stability.__init__ = keep
    model = ["model=moe"] if "experts" in shape else []
    run = [*model, *options(shape, shape["steps"]), "trainer.threads=1", "eval.every_steps=0"]
    blocks = train(run, BLOCK, begin)
    return blocks[::2], blocks[1::2]


if __name__ == "__main__":
    compare(__file__, __doc__, SHAPES, measure)
