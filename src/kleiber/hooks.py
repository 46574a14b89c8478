"""What Lightning does around every batch, switched off where nothing here asks for it.

A step of a small model takes 5 ms. Hooks that do nothing, each entered in a profiler's section for the module and for
every callback, five times a step, took a tenth of that. It knows nothing of what a step or a callback is for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.profilers import PassThroughProfiler


class Unasked:
    """Hooks of single batches that are not callable until a class defines them: Lightning passes over those."""

    on_train_batch_start: Any = None
    on_train_batch_end: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None
    on_before_zero_grad: Any = None


class Watch(Unasked, Callback):
    """What the callbacks here are built on: a Callback with the hooks of a batch that it defines, and no others."""


class Unprofiled(PassThroughProfiler):
    """Lightning's default, which measures nothing, without a generator for every section that is not measured."""

    section = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        return self.section
