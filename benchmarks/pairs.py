"""Processor time of a training step in pairs, on a CPU: bf16 against fp32 and the plain loop, and a large vocabulary.

Both steps of a pair alternate within one process with one thread, so that they have the same machine at the same time.
Ours is made by hand with kleiber's model, loss and optimizer on random tokens: `benchmarks/overhead.py` measures what
Lightning adds. The ratio of a pair is

    bf16 ...        our step in bf16 / our step in fp32
    plain ...       our step in bf16 / the step of benchmarks/bare.py in bf16
    vocabulary      our step with 131,072 words / with 32,768
    compiled        our step with the blocks of a deep model compiled (trainer.compile=true) / without

    python benchmarks/pairs.py --processes 2 [--shape "bf16 tiny"]
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from step import SHAPES
from turns import Blocks, Shape, compare

TINY, SMALL = ({**SHAPES[name], "steps": steps} for name, steps in (("tiny", 9), ("small", 7)))
MIXTURE = {"experts": 8, "active": 2}
PAIRS: dict[str, Shape] = {
    "bf16 tiny": TINY,
    "bf16 small": SMALL,
    "bf16 tiny mixture": TINY | MIXTURE,
    "bf16 small mixture": SMALL | MIXTURE,
    "plain tiny": TINY | {"plain": 1},
    "vocabulary": TINY | {"vocab": 32768, "larger": 131072, "steps": 4},
    "compiled": TINY | {"depth": 12, "rows": 8, "compiled": 1},
}


def ours(shape: Shape) -> Any:
    """kleiber's model of a shape, and the function from a batch of tokens to the sum and the number of its losses."""
    from kleiber.models.transformer import Transformer
    from kleiber.nn.mlp import SwiGLU
    from kleiber.nn.moe import interleaved_moe
    from kleiber.objectives.clm import CLM
    from kleiber.types.batch import Batch

    experts = {"num_experts": shape.get("experts"), "k": shape.get("active")}
    mlp = partial(interleaved_moe, **experts) if "experts" in shape else SwiGLU
    size = (shape["vocab"], shape["depth"], shape["width"])
    model = Transformer(*size, num_heads=shape["heads"], context=shape["context"], mlp=mlp)
    objective = CLM()

    def loss(tokens: Any) -> Any:
        sums = objective(model, Batch(tokens))
        return sums.total / sums.tokens

    return model, loss


def plain(shape: Shape) -> Any:
    """The model of benchmarks/bare.py and its loss, whose logits are all in memory."""
    import torch.nn.functional as F
    from bare import Bare

    names = ("vocab", "width", "depth", "heads", "hidden", "context")
    model = Bare(*(shape[name] for name in names))

    def loss(tokens: Any) -> Any:
        return F.cross_entropy((model(tokens[:, :-1]) @ model.embed.weight.T).flatten(0, 1), tokens[:, 1:].flatten())

    return model, loss


def stepper(shape: Shape, build: Callable[[Shape], Any], bf16: bool) -> Callable[[], float]:
    """A function that makes one optimizer step on random tokens and returns its processor time in seconds."""
    import torch

    model, loss = build(shape)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    tokens = torch.randint(shape["vocab"], (shape["rows"], shape["context"] + 1))

    def step() -> float:
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(tokens)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()
        return time.process_time() - began

    return step


def measure(shape: Shape) -> tuple[Blocks, Blocks]:
    """Seconds of each step of one way and of the other, in turn; those of the first pair also pay for memory."""
    import torch

    from kleiber.training.memory import keep_freed_memory
    from kleiber.training.trainer import Local

    torch.set_num_threads(1)
    keep_freed_memory()
    if "larger" in shape:
        first, second = (stepper(shape | {"vocab": shape[key]}, ours, bf16=False) for key in ("larger", "vocab"))
    elif "compiled" in shape:

        def compiled(shape: Shape) -> Any:
            model, loss = ours(shape)
            Local(compile=True).prepare_model(model)
            return model, loss

        first, second = (stepper(shape, build, bf16=False) for build in (compiled, ours))
    elif "plain" in shape:
        first, second = (stepper(shape, build, bf16=True) for build in (ours, plain))
    else:
        first, second = (stepper(shape, ours, bf16=bf16) for bf16 in (True, False))
    times = [(first(), second()) for _ in range(shape["steps"])]
    return [one for one, _ in times], [two for _, two in times]


if __name__ == "__main__":
    compare(__file__, __doc__, PAIRS, measure)
