"""A bound of the speed of a training step on an H100, from its operators: nothing is run on a GPU.

    python benchmarks/roofline.py [KEY=VALUE...]

The step is made with tensors that have a shape and no values (`kleiber.runs.memory_plan`). An operator takes the time
of its FLOPs or of the bytes that it reads and writes, whichever is longer. The rates below are what good kernels reach
of the data sheet. Operators are those of a CPU, which has more and smaller ones; `trainer.compile` would fuse many.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.targets import build
from kleiber.launch.run_cost import Models
from kleiber.runs import memory_plan
from kleiber.runs.inherit import complete_config
from kleiber.runs.run import plan_stages

BANDWIDTH = 2.7e12  # bytes/s of 3.35e12
PEAK = 989e12  # FLOP/s in bf16, dense
RATES = {torch.bfloat16: 0.72 * PEAK, torch.float32: 0.65 * 495e12}  # fp32 as TF32
ATTENTION = 0.5 * PEAK
LAUNCH = 6e-6  # seconds that the host takes to start an operator
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view", "alias", "lift_fresh")
NVLINK = 350e9  # bytes/s of a sum of gradients over the GPUs of one machine
MODEL = ["data=builtin", "model=gpt", "model.depth=20", "model.width=2048", "model.num_heads=16", "model.context=2048",
         "data.tokenizer=bpe", "data.vocab_size=32768", "data.max_bytes=24M", "trainer.precision=bf16",
         "budget.steps=10", "batch.tokens=16384", "batch.micro=8", "callbacks.samples=null"]  # fmt: skip


class Roofline(memory_plan.LiveBytes):
    """Adds up the time of each kind of operator, in the device's time and in that of the host."""

    instances: list[Roofline] = []  # noqa: RUF012

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.times, self.counts, self.warm = defaultdict[str, float](float), Counter[str](), False
        self.instances.append(self)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        name = function._overloadpacket.__name__
        if function.namespace == "prim" or function.is_view or name in FREE:
            return result
        if "_fused_adamw_" in self.counts and name != "_fused_adamw_" and not self.warm:  # the first step has ended
            self.warm = True
            self.times.clear()
            self.counts.clear()
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        seconds = moved * (1.75 if name == "_fused_adamw_" else 1.0) / BANDWIDTH  # reads four tensors, writes three
        if "flash_attention" in name:
            batch, heads, time, size = inputs[1 if "backward" in name else 0].shape
            flops = (5 if "backward" in name else 2) * batch * heads * time * time * size  # half of the pairs
            seconds = max(seconds, flops / ATTENTION)
        elif function._overloadpacket in flop_registry:
            flops = flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
            seconds = max(seconds, flops / RATES[inputs[0].dtype])
        self.times[name] += seconds
        self.counts[name] += 1
        return result


def main(overrides: list[str]) -> None:
    overrides = [*MODEL, *overrides]
    config = complete_config(resolve_config(Composer().compose(overrides))[0], overrides)
    hardware = build(OmegaConf.create(config)["trainer"])
    stage = plan_stages(config, hardware, Models())[0]
    with patch.object(memory_plan, "LiveBytes", Roofline):
        planned = memory_plan.plan_memory(stage.config, stage.plan, hardware, "gpu")
    assert isinstance(planned, memory_plan.MemoryPlan), planned
    (roofline,) = Roofline.instances
    device = sum(roofline.times.values())
    optimizer = roofline.times["_fused_adamw_"]
    host, tokens = LAUNCH * roofline.counts.total(), planned.rows * stage.plan.context
    reduced = 4 * stage.plan.parameters.total * 2 * 7 / 8 / NVLINK
    print(f"{stage.plan.parameters.total:,} parameters, {tokens:,} tokens in a micro-batch; {planned.describe(1)}")
    print(f"device {1e3 * (device - optimizer):.0f} ms a micro-batch, optimizer {1e3 * optimizer:.0f} ms a step")
    print(f"{roofline.counts.total():,} operators, which the host starts in {1e3 * host:.0f} ms")
    print(f"sum of gradients over 8 GPUs {1e3 * reduced:.0f} ms a step, if nothing hides it")
    for name, seconds in sorted(roofline.times.items(), key=lambda row: -row[1])[:12]:
        print(f"  {name:50} {1e3 * seconds:8.1f} ms {roofline.counts[name]:6}")
    for number in (1, 4):
        seconds = number * max(device - optimizer, host) + optimizer + reduced
        speed = number * tokens / seconds
        share = speed * stage.plan.flops_per_token / PEAK
        print(f"{number} micro-batches a step: at most {speed:,.0f} tokens/s of a GPU, MFU {share:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
