"""What Lightning, callbacks and logging add to a step: processor time of the whole train.py against a bare loop around
the same model, loss, batches and optimizer.

After every 25 steps of train.py (so that each block has its share of logged ones) the bare loop, with a model and
batches of its own, makes 25. One thread; run it on an idle machine:

    python benchmarks/overhead.py --processes 5
"""

import time
from collections.abc import Callable
from typing import Any

from turns import Blocks, Shape, compare, train

SHAPES = {  # named after the time of a step on the machine that the numbers in the README are from
    "5ms": {"width": 32, "depth": 2, "context": 128, "batch": 512, "steps": 825},
    "25ms": {"width": 64, "depth": 2, "context": 128, "batch": 2048, "steps": 425},
}
BLOCK = 25


def bare(shape: Shape) -> Callable[[int], None]:
    """Makes the steps of so many batches by hand: forward, backward, division by the tokens, clipping, rate, AdamW."""
    import torch

    from kleiber.data.batches import stream
    from kleiber.data.builtin import Builtin
    from kleiber.models.transformer import Transformer
    from kleiber.objectives.clm import CLM
    from kleiber.optimizers.adamw import AdamW
    from kleiber.optimizers.schedules import WSD

    corpus = Builtin("docs").prepare(shape["context"])
    model: Any = Transformer(corpus.tokenizer.vocab_size, 2, shape["width"], context=shape["context"])
    settings, schedule, objective = AdamW(), WSD(), CLM()
    optimizer = settings.build(model, model.roles(), model.parametrization.lr_scale)
    batches = stream(corpus.train, 0, 0, shape["batch"] // shape["context"])
    parameters = list(model.parameters())
    done = 0

    def steps(number: int) -> None:
        nonlocal done
        for step in range(done, done + number):
            loss = objective(model, next(batches))
            loss.total.backward()
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_div_(gradients, loss.tokens.item())
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * group["lr_scale"] * schedule(step, shape["steps"])
            optimizer.step()
            optimizer.zero_grad()
        done += number

    return steps


def measure(shape: Shape) -> tuple[Blocks, Blocks]:
    """Blocks of train.py, and of the bare loop after each of them."""
    other: Blocks = []
    steps: Callable[[int], None] | None = None

    def begin(number: int) -> None:
        nonlocal steps
        steps = steps or bare(shape)  # now that train.py has set torch up
        began = time.process_time()
        steps(BLOCK)
        other.append((time.process_time() - began) / BLOCK)

    run = [
        f"model.width={shape['width']}", f"model.depth={shape['depth']}", f"model.context={shape['context']}",
        f"batch.tokens={shape['batch']}", f"budget.steps={shape['steps']}", "trainer.threads=1", "logger=csv",
        "eval.every_steps=0", "eval.tokens=4096", "callbacks.checkpoints.every=0", "callbacks.samples=null",
    ]  # fmt: skip
    blocks = train(run, BLOCK, begin)
    return blocks, other[1:]


if __name__ == "__main__":
    compare(__file__, __doc__, SHAPES, measure)
