"""Callbacks that report on training without changing it: metrics of steps, throughput and routing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from torch import Tensor

from kleiber.records.summary import StageRecord
from kleiber.records.terminal import print_line
from kleiber.training.energy import EnergyMeter
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Count, Json, Share


class Log(LeanCallback):
    """Logs the metrics of single steps, every `every` optimizer steps, without averaging over steps.

    train/loss (cross-entropy, nats per token), train/total (with auxiliary losses), train/grad_norm (before clipping),
    train/lr, train/tokens (cumulative), train/retention/<name> for metrics of retention methods, and for mixtures
    moe/balance/<layer>, moe/z/<layer>, moe/margin/<layer> and moe/drop/<layer> (see `Output`; `RoutingHealth` logs
    loads).
    """

    def __init__(self, batch_tokens: Count, every: Count = 10) -> None:
        self.batch_tokens, self.every = batch_tokens, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Logs a row where one is due, and after the last step."""
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        row = {"train/tokens": float(step * self.batch_tokens), **training_metrics(pl_module.last)}
        for logger in trainer.loggers:
            logger.log_metrics(row, step)


def training_metrics(last: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The means of a step by the names under which they are logged; loads are left out."""
    row: dict[str, float] = {}
    for name, value in last.items():
        kind, _, layer = name.partition("/")
        if kind == "load":
            continue
        if kind == "retention":
            row[f"train/{name}"] = float(value)
        elif layer:
            row[f"moe/{name}"] = float(value)
        elif name not in ("tokens", "loss"):
            row[f"train/{'loss' if name == 'ce' else name}"] = float(value)
    return row


class Throughput(LeanCallback):
    """Measures the seconds and tokens per second of training, without evaluations and checkpoints, for the record.

    The time of a step begins where the last callback of the step before has returned (`start_callback`), so it includes
    the wait for data. It ends before the other callbacks.

    Every `every` steps it logs speed/tokens_per_s and speed/seconds of the stage; the seconds are resumed with the run.
    The first step of a process counts for the seconds but not for the speed, because it allocates and compiles.

    meter  of the energy of the device, read at the same steps
    """

    of_one_stage = True

    def __init__(
        self, batch_tokens: Count, record: StageRecord, every: Count = 10, meter: EnergyMeter | None = None
    ) -> None:
        self.batch_tokens, self.record, self.every, self.meter = batch_tokens, record, every, meter
        self.seconds = record.seconds = 0.0
        self.timed_steps, self.timed_seconds = 0, 0.0
        self._warm, self._started = False, 0.0

    def state_dict(self) -> Json:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: Json) -> None:
        self.seconds = self.record.seconds = state_dict["seconds"]

    def start_callback(self) -> StartClock:
        """Returns the callback that starts the clock, which must be the last one of a stage."""
        return StartClock(self)

    def start(self) -> None:
        """Starts the clock of the next step."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Adds the time of the step to the record, and logs a row where one is due."""
        spent = time.perf_counter() - self._started
        self.seconds += spent
        if self._warm:
            self.timed_steps += 1
            self.timed_seconds += spent
            self.record.tokens_per_s = self.timed_steps * self.batch_tokens / self.timed_seconds
        self._warm, self.record.seconds = True, self.seconds
        if trainer.global_step % self.every == 0 and self.record.tokens_per_s:
            row = {"speed/tokens_per_s": self.record.tokens_per_s, "speed/seconds": self.seconds}
            for logger in trainer.loggers:
                logger.log_metrics(row, trainer.global_step)
            if self.meter is not None:
                self.meter.sample()


class StartClock(LeanCallback):
    """Starts the clock of `throughput` after all other callbacks."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        self.throughput.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        self.throughput.start()


DEAD = 0.1  # an expert is dead if its share over a window is below this part of the uniform share


class RoutingHealth(LeanCallback):
    """Logs every `every` optimizer steps how the load of each layer is spread over its experts, and prints alarms.

    A row covers the steps since the row before; a dense model has no rows.

    moe/load_entropy/<layer>  entropy of the shares over its maximum: 1 when uniform, 0 when one expert takes all
    moe/cv/<layer>            standard deviation of the shares over their mean
    moe/max_violation/<layer> largest share over the uniform share, minus 1 (Wang et al. 2024,
                              arXiv:2408.15664)
    moe/load/<layer>/<expert> share of each expert, where there are at most 64
    moe/dead/<layer>          experts with less than a tenth of the uniform share over the last window of at least
                              `window` tokens; logged once a window has passed

    Alarms name layer and expert. Each is printed once, and again only after the layer has recovered:

    collapse  load entropy below `entropy` in `patience` consecutive rows
    dead      an expert dead in two consecutive windows
    gaming    a balance loss below `floor` in `patience` consecutive rows, impossible for scores that sum to 1

    Counts are those of the global batch, over all ranks. The state is saved and resumed with the run.
    """

    def __init__(
        self,
        every: Count = 10,
        window: Count = 100_000,
        patience: Count = 5,
        entropy: Share = 0.5,
        floor: Share = 0.9,
    ) -> None:
        self.every, self.window, self.patience, self.entropy, self.floor = every, window, patience, entropy, floor
        self.loads: dict[str, Tensor] = {}  # since the last row
        self.windows: dict[str, Tensor] = {}  # since the last window was full
        self.tokens = 0.0  # of the windows
        self.dead: dict[str, list[int]] = {}  # experts that were dead in the last window
        self.streaks: dict[str, int] = {}  # consecutive rows with the same alarm
        self.alarmed: set[str] = set()

    def state_dict(self) -> Json:
        """Returns the accumulated expert loads, token counts and alarms; {} for a dense model."""
        if not self.windows:
            return {}
        loads, windows = ({layer: v.cpu() for layer, v in sums.items()} for sums in (self.loads, self.windows))
        counts = {"tokens": self.tokens, "dead": self.dead, "streaks": self.streaks, "alarmed": sorted(self.alarmed)}
        return {**counts, "loads": loads, "windows": windows}

    def load_state_dict(self, state_dict: Json) -> None:
        self.loads, self.windows, self.tokens = state_dict["loads"], state_dict["windows"], state_dict["tokens"]
        self.dead, self.streaks, self.alarmed = state_dict["dead"], state_dict["streaks"], set(state_dict["alarmed"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Adds the loads of the step; logs a row and prints new alarms where a row is due."""
        last = pl_module.last
        loads = {
            name.partition("/")[2]: value
            for name, value in last.items()
            if isinstance(value, Tensor) and name.startswith("load/")
        }
        if not loads:
            return
        for layer, load in loads.items():
            for sums in (self.loads, self.windows):
                sums[layer] = sums[layer].to(load.device) + load if layer in sums else load
        self.tokens += float(last["tokens"])
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        row, alarms = self.report(last)
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
        if trainer.is_global_zero:
            for alarm in alarms:
                print_line(f"routing at step {step:,}: {alarm}", err=True)

    def report(self, last: Mapping[str, Tensor | float]) -> tuple[dict[str, float], list[str]]:
        """Returns the row of routing metrics by name, and the texts of new alarms; resets the expert loads to 0.

        last  metrics of the latest step, with the balance loss of each layer as "balance/<layer>"
        """
        row: dict[str, float] = {}
        alarms: list[str] = []
        full = self.tokens >= self.window
        for layer, load in self.loads.items():
            share = load.double() / load.sum().clamp(min=1)
            shape = statistics(share.cpu())
            row |= {f"moe/{name}/{layer}": value for name, value in shape.items()}
            if len(share) <= 64:
                row |= {f"moe/load/{layer}/{expert}": value for expert, value in enumerate(share.tolist())}
            busiest = int(share.argmax())
            text = f"layer {layer} collapses onto expert {busiest}, which gets {share[busiest]:.0%} of the load"
            alarms += self._alarm(f"collapse/{layer}", shape["load_entropy"] < self.entropy, self.patience, text)
            balance = float(last.get(f"balance/{layer}", 1.0))
            text = f"layer {layer} has a balance loss of {balance:.3f}, below 1: its scores are not a distribution"
            alarms += self._alarm(f"gaming/{layer}", balance < self.floor, self.patience, text)
            if full:
                alarms += self._update_dead_experts(layer, row)
        self.loads = {}
        if full:
            self.windows, self.tokens = {}, 0.0
        return row, alarms

    def _update_dead_experts(self, layer: str, row: dict[str, float]) -> list[str]:
        counts = self.windows[layer]
        dead = (counts * len(counts) < DEAD * counts.sum()).nonzero().flatten().tolist()
        again = sorted(set(dead) & set(self.dead.get(layer, [])))
        self.dead[layer] = dead
        row[f"moe/dead/{layer}"] = float(len(dead))
        names = ", ".join(map(str, again))
        return self._alarm(f"dead/{layer}", bool(again), 1, f"layer {layer}: dead for two windows: expert {names}")

    def _alarm(self, name: str, wrong: bool, patience: int, text: str) -> list[str]:
        self.streaks[name] = self.streaks.get(name, 0) + 1 if wrong else 0
        if not wrong:
            self.alarmed.discard(name)
        if self.streaks[name] < patience or name in self.alarmed:
            return []
        self.alarmed.add(name)
        return [text]


def statistics(share: Tensor) -> dict[str, float]:
    """How uneven shares are: entropy over its maximum, standard deviation over mean, largest over uniform minus 1."""
    experts = len(share)
    entropy = -(share * share.clamp_min(1e-12).log()).sum() / math.log(experts)
    return {
        "load_entropy": float(entropy),
        "cv": float(share.std(correction=0) * experts),
        "max_violation": float(share.max() * experts - 1),
    }
