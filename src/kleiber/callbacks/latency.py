"""After the last step, how fast the model that was trained reads and writes, and what it holds in memory meanwhile.

It measures the machine as it is: what else runs there slows it, and the best of several runs tells most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from kleiber.callbacks.closing import Closing
from kleiber.evals.latency import latency, lengths


class Latency(Closing):
    """Logs latency/<what>/<batch>, what `evals.latency` measures: prefill_tokens_per_s, decode_tokens_per_s,
    decode_p50_ms, decode_p95_ms and memory_bytes, as `kleiber eval RUN --evals latency` does.

    batches  rows that are decoded at once, one measurement each
    repeats  rounds of each, after one that warms up

    A stage that others go on from is left out: theirs is the model that is served. Weights are read in the precision
    that they are trained in (fp32 for bf16, whose products alone are rounded); an adapter is not merged. The peak
    memory of a process counts what is held here.
    """

    def __init__(self, branch_steps: Sequence[int] = (), batches: Sequence[int] = (1, 8, 64), repeats: int = 3) -> None:
        if not batches or min(*batches, repeats) < 1:
            raise ValueError(f"callbacks.latency: batches={list(batches)}, repeats={repeats}: each at least 1")
        self.batches, self.repeats, self.is_leaf = batches, repeats, not branch_steps

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        lengths(pl_module.model)  # a context that is too short is told now, and not after training

    def score(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        if not self.is_leaf:
            return {}
        prompt, new = lengths(pl_module.model)
        found = latency(pl_module.model, self.batches, prompt, new, self.repeats)
        return {f"latency/{name}": value for name, value in found.items()}
