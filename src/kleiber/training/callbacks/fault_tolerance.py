"""Callbacks for runs that are interrupted or become unstable: checkpoints, preemption, and spikes of the loss.

A run that receives SIGTERM or SIGUSR1 finishes its step, saves a checkpoint and ends with exit code 75. A scheduler
that sees 75 (or the status `preempted`) starts the same command again, which continues bit-identically. SIGINT (Ctrl-C)
does the same with exit code 130 and the status `interrupted`.
"""

from __future__ import annotations

import math
import signal
import statistics
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from lightning.pytorch import Callback
from torch import nn

from kleiber.config.errors import SIGNALS, RankTimeout, is_handled, note_signal, pending_signal, preempted_by
from kleiber.training import checkpoint
from kleiber.training.lightning import LeanCallback, Trainer, callbacks_of
from kleiber.training.lit import LitLM
from kleiber.training.sharding import OptimizerState, full_parameters, gather_state, optimizer_state, sharded_modules
from kleiber.training.step import Diverged, rank_timeouts
from kleiber.types import Count, Json, Natural, Positive
from kleiber.types.batch import Batch


class Checkpoints(LeanCallback):
    """Saves a checkpoint every `every` optimizer steps and after the last one, and keeps the newest `keep`.

    every         None: ten times per run, but at least every 1000 steps; 0: only after the last step
    branch_steps  steps where later stages begin: checkpoints are saved there too, and are kept

    Where the disk has no space for a checkpoint, the run ends with status `failed`, and earlier checkpoints are kept.
    """

    def __init__(
        self,
        folder: Path,
        config_hash: str,
        every: Natural | None = None,
        keep: Count = 2,
        branch_steps: Sequence[Natural] = (),
    ) -> None:
        self.folder, self.config_hash, self.every, self.keep = folder, config_hash, every, keep
        self.branch_steps = frozenset(branch_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        if self.every is None:
            self.every = max(1, min(1000, trainer.max_steps // 10))
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        if self.due(trainer):
            self.save(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LitLM, exception: BaseException) -> None:
        """Saves the state after the last step that all ranks completed, where a rank did not answer in the next one.

        Without the other ranks, rank 0 cannot save a sharded model.
        """
        if not isinstance(exception, RankTimeout) or not trainer.is_global_zero or sharded_modules(pl_module.model):
            return
        step = trainer.global_step
        if step and not (self.folder / checkpoint.name(step)).exists():
            self.write(trainer, pl_module, optimizer_state(trainer.optimizers[0]))
            print(f"saved a checkpoint at step {step:,}", file=sys.stderr)

    def due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is saved after the latest step."""
        step = trainer.global_step
        return step == trainer.max_steps or step in self.branch_steps or bool(self.every and step % self.every == 0)

    def save(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Saves the state after the latest step. Rank 0 collects the shards of the other ranks, which wait for it."""
        (optimizer,) = trainer.optimizers
        state = gather_state(optimizer_state(optimizer), keep=trainer.is_global_zero)
        with full_parameters(pl_module.model):
            if trainer.is_global_zero:
                self.write(trainer, pl_module, state)
        if torch.distributed.is_initialized():
            trainer.strategy.barrier()

    def write(self, trainer: Trainer, pl_module: LitLM, optimizer: OptimizerState) -> None:
        """Writes the checkpoint and removes old ones; `optimizer` is the optimizer's state by parameter name."""
        if not self.folder.is_dir():  # deleted while the run trains: writing would make a folder without a config
            raise FileNotFoundError(f"{self.folder} no longer exists")
        callbacks = {callback.state_key: callback.state_dict() for callback in callbacks_of(trainer)}
        state = {
            "optimizer": optimizer,
            "retention": {method_name(method): method.state_dict() for method in pl_module.retention},
            "micro_batch": pl_module.micro_batch,
            "callbacks": {key: state for key, state in callbacks.items() if state},
        }
        model = pl_module.model
        names = checkpoint.trained_names(model) if pl_module.partial else None
        checkpoint.save(self.folder, trainer.global_step, model, state, self.config_hash, names)
        checkpoint.tidy(self.folder, self.keep, [self.folder / checkpoint.name(s) for s in self.branch_steps])


def method_name(method: nn.Module) -> str:
    """The name of a retention method in configs and checkpoints, such as `ewc`."""
    return type(method).__name__.lower()


def restore_callbacks(callbacks: Sequence[Callback], state: Mapping[str, Json], same_stage: bool = True) -> None:
    """Loads into each callback the state that it saved.

    same_stage  whether this stage saved the state; False for a parent stage, whose state callbacks with `of_one_stage`
                do not take over
    """
    for callback in callbacks:
        inherits = same_stage or not (isinstance(callback, LeanCallback) and callback.of_one_stage)
        if inherits and callback.state_key in state:
            callback.load_state_dict(state[callback.state_key])


class Preempt(LeanCallback):
    """Saves a checkpoint and raises Preempted after the step in which any rank received a signal.

    All ranks end after the same step. It must come after `checkpoints` in the list of callbacks.
    """

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self.checkpoints = checkpoints
        self.received = 0

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Handles the signals in place of Lightning, which restores the handlers from before the fit at its end."""
        # Lightning's own handlers would end the run without a checkpoint.
        if threading.current_thread() is threading.main_thread():
            for number in filter(is_handled, SIGNALS):
                signal.signal(number, self.note)
            self.received = pending_signal()

    def note(self, number: int, frame: object) -> None:
        """Remembers the first signal until the end of the step; a second Ctrl-C ends the process."""
        note_signal(number)
        self.received = self.received or number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Ends the run where a signal was received, except after its last step."""
        step = trainer.global_step
        with rank_timeouts():
            number = self._of_any_rank(trainer)
        if not number or step == trainer.max_steps:  # a finished run is not interrupted
            return
        outcome = "no checkpoint is saved (callbacks.checkpoints=null), so the run will start from the beginning"
        if self.checkpoints is not None:
            if not self.checkpoints.due(trainer):
                self.checkpoints.save(trainer, pl_module)
            outcome = "a checkpoint is saved"
        raise preempted_by(signal.Signals(number).name, f" at step {step:,}: {outcome}")

    def _of_any_rank(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self.received
        number = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number)


SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
IN_A_ROW = 10  # consecutive skipped steps, beyond which the loss has changed for good and the run ends


class Stability(LeanCallback):
    """Detects and prints spikes of the loss and of the gradient norm, and can skip their steps.

    A spike begins with a step whose cross-entropy is above median + max(`deviations` robust standard deviations,
    `least` nats), or whose gradient norm is above `norms` medians, both over the last `window` steps. It ends with the
    first step below both thresholds. It is printed once, with its step and samples. Logs train/spikes and
    train/skipped, counted from the start. The state is saved and resumed with the run.

    policy     tell: print the spike and continue; skip: also keep weights and optimizer state as before the step
               (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, also went back 100 steps)
    nonfinite  halt: a loss or gradient that is not finite ends the run; skip: the step is skipped

    More than ten consecutive skipped steps end the run as diverged.
    """

    def __init__(
        self,
        window: Annotated[int, Ge(10), Le(10**6)] = 50,
        deviations: Positive = 8.0,
        least: Positive = 0.3,
        norms: Annotated[float, Gt(1)] = 10.0,
        policy: Literal["tell", "skip"] = "tell",
        nonfinite: Literal["halt", "skip"] = "halt",
    ) -> None:
        self.window, self.deviations, self.least, self.norms = window, deviations, least, norms
        self.policy, self.nonfinite = policy, nonfinite
        self.recent: deque[float] = deque(maxlen=window)
        self.recent_norms: deque[float] = deque(maxlen=window)
        self.spikes = self.skipped = self.in_a_row = 0
        self.inside = self.began = False  # a spike; its first step

    def state_dict(self) -> Json:
        return {
            "recent": list(self.recent), "norms": list(self.recent_norms), "spikes": self.spikes,
            "skipped": self.skipped, "in_a_row": self.in_a_row, "inside": self.inside,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Json) -> None:
        self.recent = deque(state_dict["recent"], maxlen=self.window)
        self.recent_norms = deque(state_dict.get("norms", ()), maxlen=self.window)
        self.spikes, self.inside = state_dict["spikes"], state_dict["inside"]
        self.skipped, self.in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        pl_module.guard = self

    def refuses(self, loss: float, norm: float) -> bool:
        """Returns whether to skip the update of a step, and counts spikes.

        loss, norm  mean loss of the step in nats per token, and norm of its gradient; the same on every rank

        A step is a spike if its loss is above `threshold` or its gradient norm above `norms` times the median norm.
        `policy` decides whether spikes are skipped, `nonfinite` whether steps with nan or inf are. Raises Diverged
        after more than IN_A_ROW consecutive skipped steps.
        """
        finite = math.isfinite(loss) and math.isfinite(norm)
        usual = median(self.recent_norms, self.window)
        leaps = not finite or self.above(loss) or (usual is not None and norm > self.norms * usual)
        self.began = leaps and not self.inside
        self.spikes += self.began
        self.inside = leaps
        if not leaps:  # spikes do not count for the medians
            self.recent.append(loss)
            self.recent_norms.append(norm)
        refused = leaps and (self.policy if finite else self.nonfinite) == "skip"
        self.skipped += refused
        self.in_a_row = self.in_a_row + 1 if refused else 0
        if self.in_a_row > IN_A_ROW:
            raise Diverged(
                f"the run diverged: more than {IN_A_ROW} consecutive steps were skipped as spikes, the last one with "
                f"loss {loss:g}; lower optimizer.lr or raise schedule.warmup_steps"
            )
        return refused

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, outputs: object, batch: Batch, *_: object) -> None:
        if self.began:
            self._print_spike(trainer, float(pl_module.last["ce"]), batch)
        elif self.in_a_row:
            self._log(trainer)

    def above(self, loss: float) -> bool:
        """Whether a step with that loss is a spike. Computes the threshold, which is slow, only where it matters."""
        usual = median(self.recent, self.window)
        if usual is None or loss <= usual + self.least:
            return False
        threshold = self.threshold()
        return threshold is not None and loss > threshold

    def threshold(self) -> float | None:
        """The loss in nats above which a step is a spike; None in the first half of the first window."""
        usual = median(self.recent, self.window)
        if usual is None:
            return None
        spread = SIGMA * statistics.median(abs(value - usual) for value in self.recent)
        return usual + max(self.deviations * spread, self.least)

    def _log(self, trainer: Trainer) -> None:
        row = {"train/spikes": float(self.spikes)} | ({"train/skipped": float(self.skipped)} if self.skipped else {})
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)

    def _print_spike(self, trainer: Trainer, loss: float, batch: Batch) -> None:
        self._log(trainer)
        if trainer.is_global_zero:
            usual = median(self.recent, self.window)
            before = "" if usual is None else f", median of the last steps {usual:.3f}"
            samples = "" if batch.samples is None else f"; samples {batch.samples[:4].tolist()}..."
            done = "; this step was skipped" if self.in_a_row else ""
            step = f"{trainer.global_step:,}"
            print(f"loss spike at step {step}: loss {loss:.3f}{before}{samples}{done}", file=sys.stderr)


def median(values: Sequence[float], window: int) -> float | None:
    """The median of the values; None where they fill less than half of the window."""
    return statistics.median(values) if len(values) >= window // 2 else None
