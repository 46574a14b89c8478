"""What Lightning, callbacks and logging add to a step: processor time of the whole train.py against a bare loop around
the same model, loss, batches and optimizer.

A step is what happens between two askings for a batch, which both ways ask of the same function: hooks, logging and
bookkeeping count, start-up and the closing evaluation do not. Steps are timed in blocks of 25, so that each has its
share of logged ones; a process tells its median block. One thread, fresh processes in turn; ratios are taken pair by
pair, and their median and quartiles printed, one row for each size of step:

    python benchmarks/overhead.py --pairs 5
"""

import statistics
from typing import Any

from step import quartiles
from turns import Shape, clocked, in_turn, ratios, train

SHAPES = {  # named after the time of a step on the machine that the numbers in the README are from
    "5ms": {"width": 32, "depth": 2, "context": 128, "batch": 512, "steps": 825},
    "25ms": {"width": 64, "depth": 2, "context": 128, "batch": 2048, "steps": 225},
}
BLOCK = 25


def ours(shape: Shape) -> None:
    """The whole train.py."""
    train([
        f"model.width={shape['width']}", f"model.depth={shape['depth']}", f"model.context={shape['context']}",
        f"batch.tokens={shape['batch']}", f"budget.steps={shape['steps']}", "trainer.threads=1", "logger=csv",
        "eval.every_steps=0", "eval.tokens=4096", "callbacks.checkpoints.every=0", "callbacks.samples=null",
    ])  # fmt: skip


def bare(shape: Shape) -> None:
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
    rows = []
    for shape, times in in_turn(__file__, __doc__, SHAPES, {"ours": ours, "bare": bare}, BLOCK).items():
        told = f"bare step {1e3 * statistics.median(times['bare']):.2f} ms"
        rows.append(f"{shape}: ours / bare {quartiles(ratios(times))}, {told}")
    if rows:  # a measured process has told its own number
        print(*rows, sep="\n")


if __name__ == "__main__":
    main()
