"""Everything that depends on Lightning's internals: its slow imports, unused hooks, messages and step counters.

A step of a small model takes 5 ms. Without `HooksDisabled`, a tenth of that goes to empty hooks: five times a step,
Lightning enters a profiler's section for the module and for every callback.

Lightning imports torchmetrics, which imports scipy, transformers and matplotlib where they are installed: 40 % of the
CPU time of `import torch, lightning` (7.7 -> 4.4 s, 407 -> 320 MB). These packages are hidden only while lightning is
imported, and can be imported as usual afterwards; only torchmetrics' use of them (plots, BERTScore) stays off.
KLEIBER_FULL_IMPORTS=1 disables the hiding.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from kleiber.config.errors import ConfigError, Interrupted
from kleiber.training.step import rank_errors
from kleiber.types.batch import Batch

HIDDEN = frozenset({"scipy", "transformers", "matplotlib"})


def import_lightning() -> None:
    """Imports lightning.pytorch, with the optional packages of torchmetrics hidden that are not loaded yet."""
    if "lightning.pytorch" in sys.modules:
        return
    if os.environ.get("KLEIBER_FULL_IMPORTS") == "1":
        importlib.import_module("lightning.pytorch")
        return
    with hidden(HIDDEN - sys.modules.keys()):
        importlib.import_module("lightning.pytorch")


@contextmanager
def hidden(packages: frozenset[str]) -> Iterator[None]:
    """Makes find_spec and importlib.metadata report `packages` as not installed, within the context."""
    find_any_spec, any_distribution = importlib.util.find_spec, importlib.metadata.distribution

    def find_spec(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name.split(".")[0] in packages else find_any_spec(name, package)

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return any_distribution(name)

    importlib.util.find_spec, importlib.metadata.distribution = find_spec, distribution
    try:
        yield
    finally:
        importlib.util.find_spec, importlib.metadata.distribution = find_any_spec, any_distribution


import_lightning()

from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping  # noqa: E402
from lightning.pytorch.profilers import PassThroughProfiler  # noqa: E402

from kleiber.records.terminal import print_logs  # noqa: E402


class HooksDisabled:
    """Hooks around a batch, set to None: Lightning skips those that a subclass does not define."""


for hook in (
    "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_before_zero_grad",
):  # fmt: skip
    setattr(HooksDisabled, hook, None)


class LeanCallback(HooksDisabled, Callback):
    """The base of kleiber's callbacks; of the hooks around a batch it has only those that it defines.

    of_one_stage  whether its saved state belongs to one stage, so that a branch does not inherit it from its trunk
    """

    of_one_stage = False


class LeanModule(HooksDisabled, LightningModule):
    """A LightningModule with manual optimization; of the hooks around a batch it has only those that it defines."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Lightning asks for the signature at every step, and computing it took 2 % of a small one.
        setattr(cls.training_step, "__signature__", inspect.signature(cls.training_step))  # noqa: B010

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets the current hook's name twice for every hook, and a Module first asks whether it is a weight.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class Unprofiled(PassThroughProfiler):
    """A profiler that measures nothing, and unlike Lightning's default creates no generator for every section."""

    section = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        return self.section


UNUSED: dict[str, Any] = {  # features of the Trainer that kleiber replaces or does not need
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_autolog_hparams": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}


def fit(trainer: Trainer, module: LightningModule, batches: Iterable[Batch], start: int) -> None:
    """Trains from optimizer step `start` to `trainer.max_steps`. Raises Interrupted for a KeyboardInterrupt.

    The module is then on the device on which it was trained: Lightning moves it to the CPU at the end of a fit.
    """
    _set_step(trainer, start)
    device = trainer.strategy.root_device
    try:
        with rank_errors(), misconfigurations():
            trainer.fit(module, train_dataloaders=batches)
    except SystemExit as error:
        raise Interrupted("SIGINT: no new checkpoint was written") from error  # which Lightning turned into an exit
    module.to(device)


def end_fit(trainer: Trainer, module: LightningModule, step: int) -> None:
    """Does what callbacks do at the end of a fit, for a module that an earlier process trained to its last step."""
    _set_step(trainer, step)
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    module.to(trainer.strategy.root_device)
    for callback in callbacks_of(trainer):
        callback.on_train_end(trainer, module)


def _set_step(trainer: Trainer, step: int) -> None:
    # The only counter that a resumed run has to set: Lightning counts the steps of manual optimization here.
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    progress.ready = progress.completed = step


def count_skipped_step(trainer: Trainer) -> None:
    """Increases `global_step` by one without a step of the optimizer."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


def stop_after_this_step(trainer: Trainer) -> None:
    """Makes the step that was just taken the last one of the fit."""
    trainer.fit_loop.epoch_loop.max_steps = trainer.global_step


@contextmanager
def misconfigurations() -> Iterator[None]:
    """Raises ConfigError for an error with which Lightning refuses a setting, such as that of one of its callbacks."""
    try:
        yield
    except MisconfigurationException as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"callbacks or trainer: Lightning refuses a setting: {text}") from error


def is_of_lightning(callback: Callback) -> bool:
    """Whether a callback is not written for kleiber: one of Lightning, or of an extension for Lightning."""
    return not isinstance(callback, LeanCallback)


def end_validation(
    trainer: Trainer, module: LightningModule, callbacks: Iterable[Callback], scores: Mapping[str, float]
) -> None:
    """Shows Lightning's callbacks the scores of a validation, as Lightning does at the end of its own."""
    device = trainer.strategy.root_device
    trainer._logger_connector._callback_metrics |= {
        name: torch.tensor(value, device=device) for name, value in scores.items()
    }
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            callback._check_on_train_epoch_end = False  # there are no epochs
        callback.on_validation_end(trainer, module)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Returns all callbacks of a trainer; a typed access to `trainer.callbacks`."""
    return vars(trainer)["callbacks"]  # an attribute that Lightning does not declare


def silence(rank_zero: bool) -> None:
    """Silences Lightning's advice on deliberate choices of kleiber, and lets kleiber's loggers print on rank 0."""
    ours = print_logs()
    ours.setLevel(logging.INFO if rank_zero else logging.ERROR)
    ours.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"The `srun` command is available on your system but is not used",
        r".*does not have many workers which may be a bottleneck",
        r".*GPU available but not used",
        r".*isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
