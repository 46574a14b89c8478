"""What Lightning does around every batch, switched off where nothing here asks for it.

A step of a small model takes 5 ms. Hooks that do nothing, each entered in a profiler's section for the module and for
every callback, five times a step, took a tenth of that. It knows nothing of what a step or a callback is for.

Imports lightning without what it never uses here: torchmetrics pulls in scipy, transformers and matplotlib because
they are installed, which is 40 % of the CPU time of `import torch, lightning` (7.7 -> 4.4 s, 407 -> 320 MB).

They are hidden only while lightning is imported, and importable as ever afterwards; what stays off is torchmetrics'
own use of them (plots, BERTScore). KLEIBER_FULL_IMPORTS=1 turns the hiding off.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


HIDDEN = frozenset({"scipy", "transformers", "matplotlib"})


def import_lightning() -> None:
    """Imports lightning.pytorch, with the extras of torchmetrics hidden unless they are loaded already."""
    if "lightning.pytorch" in sys.modules:
        return
    if os.environ.get("KLEIBER_FULL_IMPORTS") == "1":
        importlib.import_module("lightning.pytorch")
        return
    with hidden(HIDDEN - sys.modules.keys()):
        importlib.import_module("lightning.pytorch")


@contextmanager
def hidden(packages: frozenset[str]) -> Iterator[None]:
    """Makes find_spec and importlib.metadata deny `packages`, by which optional extras are looked for."""
    real_spec, real_distribution = importlib.util.find_spec, importlib.metadata.distribution

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name.split(".")[0] in packages else real_spec(name, package)

    def distribution(name: str) -> Any:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return real_distribution(name)

    importlib.util.find_spec, importlib.metadata.distribution = find_spec, distribution
    try:
        yield
    finally:
        importlib.util.find_spec, importlib.metadata.distribution = real_spec, real_distribution
