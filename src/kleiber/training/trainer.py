"""How a stage meets the hardware: a Lightning Trainer with everything turned off that this project does beside it.

Ranks are made by the launcher alone; the Trainer only ever finds them. It refuses an accelerator that is not there.

Experimental. Parameters, gradients and optimizer state sharded over ranks: PyTorch's FSDP2 (`fully_shard`), through
Lightning's ModelParallelStrategy.

Every block is a unit, and what is left of the model is another, whose weights stay whole from the forward pass to the
end of the backward pass: an objective reads the output layer outside of both. While a model is scored, samples or is
written down, every rank holds all of its weights (`sharding.full_parameters`). It refuses compiled graphs and a single
device; what else it cannot do is refused by the check of the config (`fit_together`).
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from kleiber.data.cache import cache_root
from kleiber.evals.perplexity import Place
from kleiber.training.lightning import Unprofiled

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}


@dataclass(frozen=True)
class Local:
    """One device in one process.

    accelerator    cpu or gpu
    precision      32, bf16 (autocast, fp32 weights) or 64 (for tests of exactness)
    threads        CPU threads; None leaves PyTorch's choice, one per core
    compile        torch.compile the model's training passes, in place; what is compiled is kept in the cache folder
    checkpoint_activations  keep what enters a block and compute the block again in the backward pass: less memory,
                   one more forward pass of the blocks (Chen et al. 2016, arXiv:1604.06174)
    deterministic  only deterministic kernels, an error where there is none
    max_steps      a cap on optimizer steps, for a quick look; the budget keeps its horizon
    """

    accelerator: Literal["cpu", "gpu"] = "cpu"
    devices: int = 1
    precision: Literal[32, 64, "bf16"] = 32
    threads: int | None = None
    compile: bool = False
    checkpoint_activations: bool = False
    deterministic: bool = False
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer.accelerator=gpu, but PyTorch sees no GPU here: set trainer.accelerator=cpu")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"trainer.max_steps={self.max_steps}: give a number of at least 1, or null for no cap")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"trainer.threads={self.threads}: give a number of at least 1, or null for one per core")
        self._check_devices()

    def _check_devices(self) -> None:
        if self.devices < 1:
            raise ValueError(f"trainer.devices={self.devices}: write 1, or set trainer=ddp for more")
        if self.devices > 1:
            raise ValueError(f"trainer.devices={self.devices} needs a distributed trainer: set trainer=ddp")

    @property
    def world_size(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: a checkpoint is read into a model that has it already, or it would be rounded."""
        return torch.float64 if str(self.precision) == "64" else torch.float32

    @property
    def device(self) -> torch.device:
        """Of this rank."""
        if self.accelerator == "gpu":
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")

    @property
    def place(self) -> Place:
        return Place(self.rank, self.world_size, autocast=str(self.precision) == "bf16")

    @property
    def rank(self) -> int:
        return int(os.environ.get("RANK", "0"))

    def prepare(self) -> None:
        """Process-wide settings: threads, memory, TF32 for the products of mixed precision, a quiet Lightning."""
        quiet(chief=self.rank == 0)
        if self.accelerator == "cpu":
            keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.accelerator == "gpu":
            torch.set_float32_matmul_precision("high")

    def fit_out(self, model: Any) -> None:
        """Activation checkpoints and compilation, in place: the names of parameters stay."""
        if self.checkpoint_activations:
            checkpoint_activations(model)
        if self.compile:
            keep_compiled()
            # A graph a shape: with a symbolic one, what a step computes would depend on which shapes came before it.
            model.compile(dynamic=False)

    def strategy(self) -> Any:
        return "auto"

    def arithmetic(self) -> dict[str, Any]:
        """How the Trainer is told the precision."""
        return {"precision": PRECISIONS[str(self.precision)]}

    def trainer(self, callbacks: list[pl.Callback], loggers: list[Any], max_steps: int) -> pl.Trainer:
        """A Trainer for at most `max_steps` optimizer steps over an endless stream of batches."""
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=1,
            strategy=self.strategy(),
            **self.arithmetic(),
            max_steps=max_steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=loggers,
            profiler=Unprofiled(),
            deterministic=self.deterministic,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )


@dataclass(frozen=True)
class DDP(Local):
    """One process per device, each with the whole model; gloo on CPUs, NCCL on GPUs."""

    devices: int = 2

    def _check_devices(self) -> None:
        if self.devices < 1:
            raise ValueError(f"trainer.devices={self.devices}: give a number of at least 1")

    def strategy(self) -> Any:
        if self.devices == 1:  # Lightning would leave rank variables in the environment
            return "auto"
        backend = "nccl" if self.accelerator == "gpu" else "gloo"
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)


def keep_compiled() -> None:
    """Compiled code goes to the cache folder, unless told elsewhere.

    PyTorch's own place, which it writes into the environment at import, is a temporary folder that a restart empties.
    """
    place = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if place is None or Path(place).name.startswith("torchinductor_"):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_root() / "inductor")


def checkpoint_activations(model: Any) -> None:
    """Wraps every block's forward pass so that its activations are computed again when the backward pass needs them."""
    for block in model.blocks:
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():  # nothing will ask again, and a cache of keys must not grow twice
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next one, instead of returning pages that the kernel zeroes again.

    A tenth of a small step on a CPU was such page faults. Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def quiet(chief: bool) -> None:
    """Silences what Lightning says about choices that are made here on purpose, and lets kleiber speak on rank 0."""
    ours = logging.getLogger("kleiber")
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler())
    ours.setLevel(logging.INFO if chief else logging.ERROR)
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


class Sharded(ModelParallelStrategy):
    """FSDP2 over all ranks, in the terms of `LitLM`: it is asked to shard the model, and not to synchronise."""

    def __init__(self, ranks: int, backend: str) -> None:
        super().__init__(
            data_parallel_size=ranks,
            tensor_parallel_size=1,
            process_group_backend=backend,
            save_distributed_checkpoint=False,
        )

    def shard(self, model: Any) -> None:
        """Leaves this rank its share of every parameter, along the first axis; weights are there and equal on all."""
        mesh = self.device_mesh["data_parallel"]
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        self.sharded = model

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients stay on their rank, for all micro-batches of a step but the last."""
        self.sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.sharded.set_requires_gradient_sync(True)


@dataclass(frozen=True)
class FSDP(Local):
    """Experimental. One process per device, each with a share of the weights; gloo on CPUs, NCCL on GPUs.

    The model is built whole on every rank before it is sharded, and is whole on every rank while it is scored or
    saved, so it has to fit a device without its gradients and optimizer state. Checkpoints are those of the other
    trainers, which go on from them. Zhao et al. 2023, arXiv:2304.11277, on the method.
    """

    devices: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile:
            raise ValueError("trainer.compile=true is not offered by trainer=fsdp: set trainer.compile=false")

    def _check_devices(self) -> None:
        if self.devices < 2:
            raise ValueError(f"trainer.devices={self.devices} is nothing to shard over: trainer=fsdp needs 2 or more")

    def strategy(self) -> Any:
        return Sharded(self.devices, "nccl" if self.accelerator == "gpu" else "gloo")

    def arithmetic(self) -> dict[str, Any]:
        # Lightning refuses the word for fp64 beside this strategy, and does what its plugin says.
        return {"plugins": [DoublePrecision()]} if str(self.precision) == "64" else super().arithmetic()
