"""Trainers: one process on one device, data-parallel processes (DDP), and sharded ones (FSDP, experimental).

Ranks are started by the launcher alone; a Trainer only finds them.

PyTorch's FSDP2 (`fully_shard`) shards parameters, gradients and optimizer state. Every block is a unit, and the rest of
the model is another, whose weights stay whole from the forward pass to the end of the backward pass: an objective reads
the output layer outside of both. While a model is scored, generates or is saved, every rank holds all of its weights
(`sharding.full_parameters`). `config.cross_checks` refuses what FSDP cannot be combined with.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from kleiber.data.cache import cache_root
from kleiber.evals.perplexity import Runtime
from kleiber.training.lightning import UNUSED, Unprofiled, silence

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}


@dataclass(frozen=True)
class Local:
    """One device in one process.

    accelerator    cpu or gpu
    precision      32, bf16 (autocast, fp32 weights) or 64 (for tests of exactness)
    threads        CPU threads; None leaves PyTorch's choice, one per core
    compile        torch.compile the model's training passes, in place; compiled code is kept in the cache folder
    checkpoint_activations  keep the inputs of a block and compute it again in the backward pass: less memory, one more
                   forward pass of the blocks (Chen et al. 2016, arXiv:1604.06174)
    deterministic  use only deterministic kernels; an error where there is none
    max_steps      limit of optimizer steps, for a trial; the schedule keeps the horizon of the budget
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
            raise ValueError("trainer.accelerator=gpu, but PyTorch finds no GPU: set trainer.accelerator=cpu")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"trainer.max_steps={self.max_steps} must be >= 1, or null for no limit")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"trainer.threads={self.threads} must be >= 1, or null for one per core")
        self._check_devices()

    def _check_devices(self) -> None:
        if self.devices < 1:
            raise ValueError(f"trainer.devices={self.devices} must be 1, or set trainer=ddp for more")
        if self.devices > 1:
            raise ValueError(f"trainer.devices={self.devices} needs a distributed trainer: set trainer=ddp")

    @property
    def world_size(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; a model has it before a checkpoint is loaded, which would be rounded otherwise."""
        return torch.float64 if str(self.precision) == "64" else torch.float32

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        if self.accelerator == "gpu":
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")

    @property
    def runtime(self) -> Runtime:
        """The ranks that score the model together, and their precision."""
        return Runtime(self.rank, self.world_size, autocast=str(self.precision) == "bf16")

    @property
    def rank(self) -> int:
        return int(os.environ.get("RANK", "0"))

    def prepare(self) -> None:
        """Process-wide settings: threads, memory, TF32 for the products of mixed precision, log messages."""
        silence(rank_zero=self.rank == 0)
        if self.accelerator == "cpu":
            keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.accelerator == "gpu":
            torch.set_float32_matmul_precision("high")

    def prepare_model(self, model: Any) -> None:
        """Adds activation checkpoints and compilation in place; the names of parameters stay."""
        if self.checkpoint_activations:
            checkpoint_activations(model)
        if self.compile:
            keep_compiled()
            # One graph for each shape: with a symbolic shape the result would depend on the shapes of earlier steps.
            model.compile(dynamic=False)

    def strategy(self) -> Strategy | str:
        return "auto"

    def precision_options(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer for the precision."""
        return {"precision": PRECISIONS[str(self.precision)]}

    def trainer(self, callbacks: list[pl.Callback], loggers: list[Logger], max_steps: int) -> pl.Trainer:
        """A Trainer for at most `max_steps` optimizer steps over an infinite stream of batches."""
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=1,
            strategy=self.strategy(),
            **self.precision_options(),
            max_steps=max_steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=loggers,
            profiler=Unprofiled(),
            deterministic=self.deterministic,
            **UNUSED,
        )


@dataclass(frozen=True)
class DDP(Local):
    """One process per device, each with the whole model; gloo on CPUs, NCCL on GPUs."""

    devices: int = 2

    def _check_devices(self) -> None:
        if self.devices < 1:
            raise ValueError(f"trainer.devices={self.devices} must be >= 1")

    def strategy(self) -> Strategy | str:
        if self.devices == 1:  # Lightning would leave rank variables in the environment
            return "auto"
        backend = "nccl" if self.accelerator == "gpu" else "gloo"
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)


def keep_compiled() -> None:
    """Keeps compiled code in the cache folder, unless TORCHINDUCTOR_CACHE_DIR names another one.

    PyTorch's default, which it writes into the environment at import, is a temporary folder that a restart empties.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is None or Path(folder).name.startswith("torchinductor_"):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_root() / "inductor")


def checkpoint_activations(model: Any) -> None:
    """Makes the backward pass compute the activations inside every block again."""
    for block in model.blocks:
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():  # there is no backward pass, and a key-value cache must not grow twice
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that a step frees, instead of returning pages that the kernel has to zero again.

    A tenth of a small step on a CPU was page faults. Does nothing except on Linux with glibc.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError):  # of another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


class Sharded(ModelParallelStrategy):
    """FSDP2 over all ranks, with the methods that `LitLM` calls of a strategy."""

    def __init__(self, ranks: int, backend: str) -> None:
        super().__init__(
            data_parallel_size=ranks,
            tensor_parallel_size=1,
            process_group_backend=backend,
            save_distributed_checkpoint=False,
        )

    def shard(self, model: Any) -> None:
        """Leaves this rank its share of every parameter along the first axis; weights have to be equal on all ranks."""
        mesh = self.device_mesh["data_parallel"]
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        self.sharded = model

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within it gradients stay on their rank: for all micro-batches of a step but the last."""
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
    trainers, which can resume from them. Method: Zhao et al. 2023, arXiv:2304.11277.
    """

    devices: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile:
            raise ValueError("trainer.compile=true does not work with trainer=fsdp: set trainer.compile=false")

    def _check_devices(self) -> None:
        if self.devices < 2:
            raise ValueError(f"trainer.devices={self.devices} must be >= 2 for trainer=fsdp, which shards over devices")

    def strategy(self) -> Strategy | str:
        return Sharded(self.devices, "nccl" if self.accelerator == "gpu" else "gloo")

    def precision_options(self) -> dict[str, Any]:
        # Lightning refuses the name of fp64 with this strategy, but accepts its plugin.
        return {"plugins": [DoublePrecision()]} if str(self.precision) == "64" else super().precision_options()


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory in bytes so far: of the allocator on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that MFU is relative to: the best measured fp32 matrix product on a CPU, the data sheet's on a GPU.

    None for a GPU that is not in the table, so that no MFU is relative to a guess.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for key, peak in DENSE_BF16_PEAK.items() if key in name), None)
    # Just large enough to keep all threads busy: a larger product takes longer at the same speed.
    size, best = round(512 * max(1.0, torch.get_num_threads() / 2) ** 0.5), float("inf")
    a, b, product = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    for _ in range(16):
        started = time.perf_counter()
        torch.mm(a, b, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# Dense bf16 with fp32 accumulation, NVIDIA data sheets (SXM parts where both exist).
DENSE_BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
