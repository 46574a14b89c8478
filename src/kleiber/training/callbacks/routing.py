"""Watches how a mixture routes, from the loads that every step reports: numbers for curves, words for what is wrong.

It changes nothing about training and looks at no activation. A dense model has no loads, and then it does nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from kleiber.training.lightning import Watch

DEAD = 0.1  # of the uniform share: what an expert has to get, over a window, to count as alive


class RoutingHealth(Watch):
    """Every `every` optimizer steps, for each layer with experts, from the loads since the row before:

    moe/load_entropy/<layer>  entropy of the shares over its maximum: 1 when uniform, 0 when one expert takes all
    moe/cv/<layer>            standard deviation of the shares over their mean
    moe/max_violation/<layer> share of the busiest expert over the uniform one, less 1 (Wang et al. 2024,
                              arXiv:2408.15664)
    moe/load/<layer>/<expert> share of each expert, where there are at most 64
    moe/dead/<layer>          experts with less than a tenth of the uniform share over the last window of at least
                              `window` tokens; logged once a window has passed

    (moe/balance, moe/z, moe/margin and moe/drop of single steps are `Log`'s.) Alarms go to the console, once until the
    layer has recovered, and name layer and expert:

    collapse  load entropy below `entropy` in `patience` rows running
    dead      an expert dead in two windows running
    gaming    a balance loss below `floor` in `patience` rows running: shares and scores that sum to 1 do not do that

    Counts are those of the global batch, over ranks. Resumed with the run.
    """

    def __init__(
        self,
        every: int = 10,
        window: int = 100_000,
        patience: int = 5,
        entropy: float = 0.5,
        floor: float = 0.9,
    ) -> None:
        if every < 1 or window < 1 or patience < 1:
            raise ValueError(f"callbacks.routing: every={every}, window={window}, patience={patience}: at least 1 each")
        if not 0 <= entropy <= 1 or not 0 <= floor <= 1:
            raise ValueError(f"callbacks.routing: entropy={entropy} and floor={floor} lie between 0 and 1")
        self.every, self.window, self.patience, self.entropy, self.floor = every, window, patience, entropy, floor
        self.loads: dict[str, Tensor] = {}  # since the last row
        self.windows: dict[str, Tensor] = {}  # since the last window was full
        self.tokens = 0.0  # of the windows
        self.dead: dict[str, list[int]] = {}  # experts that were dead in the last window
        self.streaks: dict[str, int] = {}  # rows running that something was wrong
        self.told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        if not self.windows:
            return {}
        kept = {"tokens": self.tokens, "dead": self.dead, "streaks": self.streaks, "told": sorted(self.told)}
        tensors = {name: {k: v.cpu() for k, v in getattr(self, name).items()} for name in ("loads", "windows")}
        return {**kept, **tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("loads", "windows", "tokens", "dead", "streaks"):
            setattr(self, name, state_dict[name])
        self.told = set(state_dict["told"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        last = pl_module.last
        loads = {name.partition("/")[2]: value for name, value in last.items() if name.startswith("load/")}
        if not loads:
            return
        for layer, load in loads.items():
            for sums in (self.loads, self.windows):
                sums[layer] = sums[layer].to(load.device) + load if layer in sums else load
        self.tokens += float(last["tokens"])
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        row, words = self.look(last)
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
        if trainer.is_global_zero:
            for word in words:
                print(f"routing at step {step:,}: {word}", file=sys.stderr)

    def look(self, last: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
        """The row of metrics, and the alarms that are new."""
        row: dict[str, float] = {}
        words: list[str] = []
        full = self.tokens >= self.window
        for layer, load in self.loads.items():
            share = load.double() / load.sum().clamp(min=1)
            shape = statistics(share.cpu())
            row |= {f"moe/{name}/{layer}": value for name, value in shape.items()}
            if len(share) <= 64:
                row |= {f"moe/load/{layer}/{expert}": value for expert, value in enumerate(share.tolist())}
            busiest = int(share.argmax())
            told = f"layer {layer} collapses onto expert {busiest}, which gets {share[busiest]:.0%} of the load"
            words += self._alarm(f"collapse/{layer}", shape["load_entropy"] < self.entropy, self.patience, told)
            balance = float(last.get(f"balance/{layer}", 1.0))
            told = f"layer {layer} has a balance loss of {balance:.3f}, below 1: its scores are not a distribution"
            words += self._alarm(f"gaming/{layer}", balance < self.floor, self.patience, told)
            if full:
                words += self._count_dead(layer, row)
        self.loads = {}
        if full:
            self.windows, self.tokens = {}, 0.0
        return row, words

    def _count_dead(self, layer: str, row: dict[str, float]) -> list[str]:
        counts = self.windows[layer]
        dead = (counts * len(counts) < DEAD * counts.sum()).nonzero().flatten().tolist()
        again = sorted(set(dead) & set(self.dead.get(layer, [])))
        self.dead[layer] = dead
        row[f"moe/dead/{layer}"] = float(len(dead))
        names = ", ".join(map(str, again))
        return self._alarm(f"dead/{layer}", bool(again), 1, f"layer {layer}: dead for two windows: expert {names}")

    def _alarm(self, name: str, wrong: bool, patience: int, told: str) -> list[str]:
        self.streaks[name] = self.streaks.get(name, 0) + 1 if wrong else 0
        if not wrong:
            self.told.discard(name)
        if self.streaks[name] < patience or name in self.told:
            return []
        self.told.add(name)
        return [told]


def statistics(share: Tensor) -> dict[str, float]:
    """How uneven the shares of the experts are."""
    experts = len(share)
    entropy = -(share * share.clamp_min(1e-12).log()).sum() / math.log(experts)
    return {
        "load_entropy": float(entropy),
        "cv": float(share.std(correction=0) * experts),
        "max_violation": float(share.max() * experts - 1),
    }
