"""Callbacks for runs that are interrupted: checkpoints and preemption.

A run that receives SIGTERM or SIGUSR1 finishes its step, saves a checkpoint and ends with exit code 75. A scheduler
that sees 75 (or the status `preempted`) starts the same command again, which continues bit-identically. SIGINT (Ctrl-C)
does the same with exit code 130 and the status `interrupted`.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback
from torch import nn

from kleiber.config.errors import SIGNALS, RankLost, RewardFailed, is_handled, note_signal, pending_signal, preempted_by
from kleiber.nn.sharding import needs_other_ranks, optimizer_state
from kleiber.records.terminal import print_line
from kleiber.training import checkpoint, shard_files
from kleiber.training.lightning import LeanCallback, Trainer, callbacks_of
from kleiber.training.lit import LitLM
from kleiber.training.snapshot import Snapshot, Writer, copy_tensors
from kleiber.training.step import Rollback, rank_errors
from kleiber.types import Count, Json, Natural
from kleiber.types.access import OutsidePath
from kleiber.types.contracts import Objective, Samples

if TYPE_CHECKING:
    from kleiber.training.remote import Remote


class Checkpoints(LeanCallback):
    """Saves a checkpoint every `every` optimizer steps and after the last one, and keeps the newest `keep`.

    A step waits for a copy of the state, which a thread writes while training goes on. The last checkpoint of a stage
    and those of an interruption are on the disk before it ends.

    every         None: ten times per run, but at least every 1000 steps; 0: only after the last step
    sharded       with trainer=fsdp, each rank writes its own shards: no rank gathers them, and files are written in
                  parallel. Any number of ranks, and every command, reads such checkpoints
    branch_steps  steps where later stages begin: checkpoints are saved there too, and are kept
    remote        URL of a folder to which the thread copies each checkpoint (see `remote`); None: none

    Where the disk has no space for a checkpoint, the run ends with status `failed` at the next step, and earlier
    checkpoints are kept.
    """

    def __init__(
        self,
        folder: Path,
        config_hash: str,
        every: Natural | None = None,
        keep: Count = 2,
        sharded: bool = False,
        branch_steps: Sequence[Natural] = (),
        remote: OutsidePath | None = None,
    ) -> None:
        self.folder, self.config_hash, self.every, self.keep = folder, config_hash, every, keep
        self.sharded = sharded
        self.branch_steps = frozenset(branch_steps)
        self.remote = None if remote is None else _copies(remote, folder)
        self.writer = Writer()
        self.complete_step = 0  # after which the callbacks before this one have their state, such as the curve

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        if self.every is None:
            self.every = max(1, min(1000, trainer.max_steps // 10))
        if trainer.is_global_zero:
            checkpoint.make_folder_of_stage(self.folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        self.complete_step = trainer.global_step
        self.writer.check()
        if self.due(trainer):
            self.save(trainer, pl_module, wait=trainer.global_step == trainer.max_steps)

    def on_exception(self, trainer: Trainer, pl_module: LitLM, exception: BaseException) -> None:
        """Saves the state after the last step that all ranks completed, where a rank or a reward fails in the next.

        Without the other ranks, rank 0 cannot save a sharded model. Where the stage goes back to its latest planned
        checkpoint, removes those that an interruption saved since, from which a resumed run would continue.
        """
        with suppress(OSError):  # the exception that ends the run is the one to report
            self.writer.wait()
        if isinstance(exception, Rollback):
            exception.target = self.planned_before(exception.step)
            if trainer.is_global_zero:
                for path in checkpoint.steps(self.folder):
                    if path.name > checkpoint.name(exception.target):
                        shutil.rmtree(path)
                if self.remote is not None:
                    self.remote.go_back(exception.target)
            if torch.distributed.is_initialized():
                trainer.strategy.barrier()
            return
        if (
            not isinstance(exception, RankLost | RewardFailed)
            or not trainer.is_global_zero
            or needs_other_ranks(pl_module.model)
        ):
            return
        step = trainer.global_step
        if step == self.complete_step > 0 and not (self.folder / checkpoint.name(step)).exists():
            self.write(trainer, pl_module)
            self.writer.wait()
            print_line(f"saved a checkpoint at step {step:,}", err=True)

    def due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is saved after the latest step."""
        return trainer.global_step == trainer.max_steps or self.is_planned(trainer.global_step)

    def is_planned(self, step: int) -> bool:
        """Whether every run of this config saves a checkpoint after that step, if it has further ones."""
        return step in self.branch_steps or bool(self.every and step % self.every == 0)

    def planned_before(self, step: int) -> int:
        """The latest step before `step` after which a checkpoint is planned; 0 without any."""
        regular = (step - 1) // self.every * self.every if self.every else 0
        return max((regular, *(branch for branch in self.branch_steps if branch < step)))

    def save(self, trainer: Trainer, pl_module: LitLM, wait: bool) -> None:
        """Saves the state after the latest step. Rank 0 collects the shards of the other ranks, which wait for that.

        wait  whether all ranks wait until the checkpoint is on the disk
        """
        if trainer.is_global_zero or needs_other_ranks(pl_module.model):
            self.write(trainer, pl_module)
        if wait:
            self.writer.wait()
        if torch.distributed.is_initialized():
            trainer.strategy.barrier()

    def state(self, trainer: Trainer, pl_module: LitLM) -> Json:
        """The state after the latest step, without the weights of the model."""
        callbacks = {callback.state_key: callback.state_dict() for callback in callbacks_of(trainer)}
        (optimizer,) = trainer.optimizers
        return {
            "optimizer": optimizer_state(optimizer),
            "retention": {method_name(method): method.state_dict() for method in pl_module.retention},
            "micro_batch": pl_module.micro_batch,
            "callbacks": {key: state for key, state in callbacks.items() if state},
        }

    def write(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Begins to write a checkpoint on rank 0, after which old ones are removed."""
        if not self.folder.is_dir():  # deleted while the run trains: writing would make a folder without a config
            raise FileNotFoundError(f"{self.folder} no longer exists")
        names = checkpoint.trained_names(pl_module.model) if pl_module.partial else None
        step, kept = trainer.global_step, set(self.branch_steps)
        if self.every:  # an interruption may have saved later ones, and a rollback does not go back to those
            kept.add(step - step % self.every)
        self.writer.wait()  # so that there is one copy at a time
        if self.sharded:
            self.write_shards(trainer, pl_module, names, kept)
            return
        weights = copy_tensors(pl_module.model.state_dict(keep_vars=True), trainer.is_global_zero)
        state = copy_tensors(self.state(trainer, pl_module), trainer.is_global_zero)
        if not trainer.is_global_zero:
            return

        def write() -> None:
            checkpoint.save(self.folder, step, Snapshot(weights), state, self.config_hash, names)
            self.tidy(step, kept)

        self.writer.start(write)

    def tidy(self, step: int, kept: Collection[int]) -> None:
        """Removes old checkpoints after that of `step` was written, and copies it where there is a remote folder."""
        checkpoint.tidy(self.folder, self.keep, [self.folder / checkpoint.name(step) for step in kept])
        if self.remote is not None:
            self.remote.copy(self.folder / checkpoint.name(step), self.keep, [*map(checkpoint.name, kept)])

    def write_shards(self, trainer: Trainer, pl_module: LitLM, names: Collection[str] | None, kept: set[int]) -> None:
        """Begins to write a checkpoint on all ranks, each with its shards, after which old ones are removed.

        names  of the weights of a partial checkpoint
        kept   steps whose checkpoints are not removed
        """
        step, mesh, model = trainer.global_step, shard_files.writers_mesh(), pl_module.model
        all_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        tied = all_names - dict(model.named_parameters()).keys()
        chosen = {
            name: value
            for name, value in model.state_dict(keep_vars=True).items()
            if name not in tied and (names is None or name in names)
        }
        weights, shards = shard_files.split_shards(chosen, mesh)
        weights |= shards
        state, state_shards = shard_files.split_shards(self.state(trainer, pl_module), mesh)
        pid = int(trainer.strategy.broadcast(os.getpid()))

        def write() -> None:
            checkpoint.save_shards(self.folder, step, weights, state, state_shards, self.config_hash, names, mesh, pid)
            if mesh.get_local_rank() == 0:
                self.tidy(step, kept)

        self.writer.start(write)


def _copies(url: str, folder: Path) -> Remote:
    """The copies of checkpoints at a URL."""
    from kleiber.training.remote import Remote

    return Remote(url, folder)


class DataPosition(LeanCallback):
    """Keeps in every checkpoint where a resumed run finds its place in a text that is encoded while it trains."""

    def __init__(self, kept: Samples | Objective) -> None:
        self.kept = kept

    def state_dict(self) -> Json:
        return self.kept.state()

    def load_state_dict(self, state_dict: Json) -> None:
        self.kept.restore(state_dict)


class UnfinishedBatch(DataPosition):
    """Keeps in every checkpoint the batch that an objective learns from in further steps (`Objective.passes`)."""


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
        self.trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Handles the signals in place of Lightning, which restores the handlers from before the fit at its end."""
        self.trainer = trainer
        # Lightning's own handlers would end the run without a checkpoint.
        if threading.current_thread() is threading.main_thread():
            for number in filter(is_handled, SIGNALS):
                signal.signal(number, self.note)
            self.received = pending_signal()

    def note(self, number: int, frame: object) -> None:
        """Remembers the first signal until the end of the step; a second Ctrl-C ends the process."""
        note_signal(number)
        if number == signal.SIGINT and not self.received and self.trainer is not None and self.trainer.is_global_zero:
            is_last = self.trainer.global_step == self.trainer.max_steps
            text = "the last evaluation goes on" if is_last else "the run ends after this step or evaluation"
            os.write(2, f"Ctrl-C: {text}; a second Ctrl-C ends it at once\n".encode())  # print may be interrupted here
        self.received = self.received or number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Ends the run where a signal was received, except after its last step."""
        step = trainer.global_step
        with rank_errors():
            number = self._of_any_rank(trainer)
        if not number or step == trainer.max_steps:  # a finished run is not interrupted
            return
        outcome = "no checkpoint is saved (callbacks.checkpoints=null), so the run will start from the beginning"
        if self.checkpoints is not None:
            if not self.checkpoints.due(trainer):
                self.checkpoints.save(trainer, pl_module, wait=True)
            self.checkpoints.writer.wait()
            outcome = "a checkpoint is saved"
        raise preempted_by(signal.Signals(number).name, f" at step {step:,}: {outcome}")

    def _of_any_rank(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self.received
        number = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number)
