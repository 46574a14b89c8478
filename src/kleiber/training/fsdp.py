"""Training with sharded weights: FSDP2 of PyTorch shards parameters, gradients and optimizer state (`nn.sharding`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from kleiber.nn.sharded_model import copy_model, shard, sharded_blocks
from kleiber.nn.sharding import sharded_modules
from kleiber.training.trainer import DDP
from kleiber.types.model import Model


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all ranks."""

    def __init__(self, ranks: int, backend: str, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=ranks,
            tensor_parallel_size=1,
            process_group_backend=backend,
            timeout=timeout,
            save_distributed_checkpoint=False,
        )

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keeps the gradients of this rank to itself, for all micro-batches of a step except the last."""
        assert self.model is not None
        parts = sharded_modules(self.model)
        for part in parts:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_requires_gradient_sync(True, recurse=False)


@dataclass(frozen=True)
class FSDP(DDP):
    """One process per device, each with a share of the weights; gloo on CPUs, NCCL on GPUs.

    A rank never holds more whole weights than those of one block and of what is outside of the blocks, unless
    something asks for all of them (`full_parameters`). Zhao et al. 2023, arXiv:2304.11277.
    """

    shards_weights: ClassVar[bool] = True

    def _check_devices(self) -> None:
        if self.devices < 2:
            raise ValueError(f"trainer.devices={self.devices} must be >= 2 for trainer=fsdp, which shards over devices")
        super()._check_devices()

    def strategy(self) -> Strategy | str:
        return Sharded(self.devices, "nccl" if self.accelerator == "gpu" else "gloo", timedelta(0, self.rank_timeout))

    def build(self, draw: Callable[[], Model]) -> Model:
        """The model that `draw` builds, of whose blocks this rank keeps its share; a dry run has no other ranks."""
        if self.world_size == 1:
            return draw()
        with sharded_blocks(self.mesh()):
            return draw()

    def shard(self, model: Model) -> None:
        """Keeps only this rank's share of every parameter, where all ranks have equal weights."""
        shard(model, self.mesh(), torch.bfloat16 if str(self.precision) == "bf16" else None)

    def trial(self, model: Model) -> Model:
        """A sharded copy of the model."""
        if self.world_size == 1:
            return model
        model = copy_model(model)
        shard(model, self.mesh())
        return model

    def compile_model(self, model: Model) -> None:
        """Compiles each block, so that its weights are gathered between the graphs."""
        for block in model.blocks:
            block.compile(dynamic=False)

    def precision_plugin(self) -> Precision | None:
        # Lightning refuses the name of fp64 with this strategy, but accepts its plugin.
        return DoublePrecision() if str(self.precision) == "64" else None
