"""Trainers: one process on one device, and data-parallel processes (DDP).

The launcher starts the processes of the ranks; a trainer only reads their number from the environment.
"""

from __future__ import annotations

from kleiber.training.lightning import UNUSED, Unprofiled, silence  # isort: skip  # it imports Lightning faster
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt, Le
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from kleiber.config.errors import ConfigError
from kleiber.data.batches import ALIGN
from kleiber.data.cache import cache_root
from kleiber.evals.task_scores import Runtime
from kleiber.training.memory import keep_freed_memory
from kleiber.types import Count
from kleiber.types.model import Model

DEEP = 8  # blocks from which on one is compiled for all: the time to compile a whole model grows with its depth
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "64-true"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "64": "64-true",
}


@dataclass(frozen=True)
class Local:
    """Trains on one device in one process.

    accelerator    cpu or gpu
    precision      32, bf16 (autocast, fp32 weights) or 64 (for tests of exactness)
    threads        CPU threads; None leaves PyTorch's choice, one per core
    compile        compile the model with torch.compile, or its blocks if they are more than eight; compiled code is
                   kept in the cache folder
    checkpoint_activations  true: store only the inputs of a block and recompute it in the backward pass, which takes
                   one more forward pass of the blocks (Chen et al. 2016, arXiv:1604.06174). selective: store the
                   results of matrix products and of attention too, and recompute the rest (Korthikanti et al. 2022,
                   arXiv:2205.05198)
    deterministic  use deterministic kernels only; raises an error where an operation has none
    max_steps      largest number of optimizer steps, for a trial; the schedule is still that of the whole budget
    """

    accelerator: Literal["cpu", "gpu"] = "cpu"
    devices: Count = 1
    precision: Literal[32, 64, "bf16"] = 32
    threads: Annotated[int, Ge(1), Le(4096)] | None = None
    compile: bool = False
    checkpoint_activations: bool | Literal["selective"] = False
    deterministic: bool = False
    max_steps: Count | None = None

    is_distributed: ClassVar[bool] = False  # whether there may be several devices
    shards_weights: ClassVar[bool] = False  # whether each rank has a share of every weight
    divides_experts: ClassVar[bool] = False  # whether each rank has a share of the experts of a mixture

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("trainer.accelerator=gpu, but PyTorch finds no GPU: set trainer.accelerator=cpu")
        self._check_devices()

    def _check_devices(self) -> None:
        if self.devices > 1:
            raise ValueError(f"trainer.devices={self.devices} needs a distributed trainer: set trainer=ddp")

    @property
    def world_size(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def num_nodes(self) -> int:
        """Number of machines, which have equal numbers of ranks."""
        return max(1, self.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, set before a checkpoint is loaded, so that loading rounds nothing."""
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
        """Applies the settings of the process: threads, memory, TF32 for matrix products on GPUs, log messages."""
        silence(rank_zero=self.rank == 0)
        if self.accelerator == "cpu":
            keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.accelerator == "gpu":
            torch.set_float32_matmul_precision("high")

    def build(self, draw: Callable[[], Model]) -> Model:
        """The model that `draw` builds, of whose blocks a rank keeps only its share where the trainer shards them."""
        return draw()

    def shard(self, model: Model) -> None:
        """Keeps only this rank's share of the weights, where the trainer shards them; here it keeps all of them."""

    def trial(self, model: Model) -> Model:
        """A model that can be called before `shard`, to measure what a forward pass needs; all ranks must call it."""
        return model

    def least_over_ranks(self, number: int) -> int:
        """The least of the numbers of all ranks, which all must call it."""
        return number

    def prepare_model(self, model: Model) -> None:
        """Adds activation checkpoints and compilation in place, which keeps the names of parameters."""
        self.prepare_blocks(model)
        if self.compile:
            keep_compiled()
            allow_shapes(model)
            self.compile_model(model)

    def prepare_blocks(self, model: Model) -> None:
        """Adds activation checkpoints in place."""
        if self.checkpoint_activations:
            from kleiber.training.recomputation import checkpoint_activations

            checkpoint_activations(model, keep_products=self.checkpoint_activations == "selective")

    def compile_model(self, model: Model) -> None:
        """Compiles the forward and the backward pass of the model, or where it is deep of a block, for all of them."""
        for part in model.blocks if len(model.blocks) > DEEP else [model]:
            # One graph for each shape: with a symbolic shape the result would depend on the shapes of earlier steps.
            part.compile(dynamic=False)

    def strategy(self) -> Strategy | str:
        return "auto"

    def precision_plugin(self) -> Precision | None:
        """The plugin that replaces Lightning's own choice for the precision; None keeps its choice."""
        return None

    def trainer(self, callbacks: list[pl.Callback], loggers: list[Logger], max_steps: int) -> pl.Trainer:
        """A Trainer for at most `max_steps` optimizer steps over an infinite stream of batches."""
        plugin = self.precision_plugin()
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=self.devices // self.num_nodes,
            num_nodes=self.num_nodes,
            strategy=self.strategy(),
            precision=PRECISIONS[str(self.precision)] if plugin is None else None,
            plugins=plugin,
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
    """One process per device, each with the whole model; gloo on CPUs, NCCL on GPUs.

    devices       number of devices, and so of processes, on all nodes together
    rank_timeout  seconds that a rank waits for another one before the run ends as failed
    """

    is_distributed: ClassVar[bool] = True
    devices: Count = 2
    rank_timeout: Annotated[float, Gt(0), Le(10**7)] = 600.0

    def _check_devices(self) -> None:
        here, visible = self.devices // self.num_nodes, torch.cuda.device_count()
        if self.accelerator == "gpu" and here > visible:
            raise ValueError(
                f"trainer.devices={self.devices} needs {here} GPUs on this node, and {visible} are visible: set fewer, "
                "or let every task of srun see all of them (--gpu-bind=none)"
            )

    def strategy(self) -> Strategy | str:
        """Lightning's strategy: DDP, or the one of a single device."""
        if self.devices == 1:  # Lightning would leave rank variables in the environment
            return "auto"
        backend = "nccl" if self.accelerator == "gpu" else "gloo"
        timeout = timedelta(seconds=self.rank_timeout)
        return DDPStrategy(process_group_backend=backend, timeout=timeout, gradient_as_bucket_view=True)

    def mesh(self) -> DeviceMesh:
        """All ranks as a line, which they join at the first call."""
        if not torch.distributed.is_initialized():
            if self.accelerator == "gpu":
                torch.cuda.set_device(self.device)
            backend = "nccl" if self.accelerator == "gpu" else "gloo"
            torch.distributed.init_process_group(backend, timeout=timedelta(seconds=self.rank_timeout))
        return init_device_mesh(self.device.type, (self.world_size,))

    def least_over_ranks(self, number: int) -> int:
        """The least of the numbers of all ranks, which all must call it; a dry run has no other ranks."""
        if self.world_size == 1:
            return number
        least = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, self.mesh().get_group())
        return int(least)


def keep_compiled() -> None:
    """Keeps compiled code in the cache folder, unless TORCHINDUCTOR_CACHE_DIR names another folder.

    PyTorch's default, which importing it writes to the environment, is a temporary folder that a reboot empties.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is None or Path(folder).name.startswith("torchinductor_"):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_root() / "inductor")


def allow_shapes(model: Model) -> None:
    """Lets torch.compile make a graph for each shape of a batch, where by default it compiles only the first eight."""
    if not model.routes:  # among experts, shapes are new in every step
        from torch._dynamo import config

        shapes = 4 * (model.context // ALIGN + 1) * len(model.blocks)  # rows, and with and without gradients
        config.recompile_limit = max(config.recompile_limit, shapes)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, shapes)


@cache
def peak_flops(device: torch.device, bf16: bool = False) -> float | None:
    """Peak FLOP/s for the MFU: measured by a product on a CPU, that of a GPU's data sheet; None for others.

    bf16  whether the product on a CPU is one of bf16, as in training with trainer.precision=bf16
    """
    if device.type == "cuda":
        return data_sheet_peak(torch.cuda.get_device_name(device))
    # Just large enough to keep all threads busy; a larger product is not faster per FLOP.
    size, best = round(512 * max(1.0, torch.get_num_threads() / 2) ** 0.5), float("inf")
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b, product = (
        torch.randn(size, size).to(dtype),
        torch.randn(size, size).to(dtype),
        torch.empty(size, size, dtype=dtype),
    )
    for _ in range(16):
        started = time.perf_counter()
        torch.mm(a, b, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def chosen_device(name: str | None) -> torch.device:
    """The device of a command that trains nothing, by its --device: cpu or gpu; None takes the GPU where there is one.

    Raises ConfigError for a GPU that is not there.
    """
    available = torch.cuda.is_available()
    if name == "gpu" and not available:
        raise ConfigError("--device gpu, but PyTorch finds no GPU: set --device cpu")
    return torch.device("cpu" if name == "cpu" or not available else "cuda")


def has_amx() -> bool:
    """Whether the processor has units for products of bf16 (Intel AMX)."""
    return torch.cpu._is_amx_tile_supported()


# Dense bf16 with fp32 accumulation in FLOP/s, from NVIDIA's data sheets, by words of the device's name; the first entry
# whose words are all there holds, so that parts of a family stand before it (the SXM part).
DENSE_BF16_PEAK = {
    "B200": 2250e12, "H200 NVL": 835e12, "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "A40": 149.7e12, "A30": 165e12, "A10": 125e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def data_sheet_peak(name: str) -> float | None:
    """The peak of the device with this name, such as "NVIDIA H100 PCIe"; None for one that is not listed."""
    words = set(re.split(r"[\s-]+", name))
    return next((peak for key, peak in DENSE_BF16_PEAK.items() if words >= set(key.split())), None)
