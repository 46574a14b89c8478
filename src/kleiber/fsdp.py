"""Experimental. Parameters, gradients and optimizer state sharded over ranks: PyTorch's FSDP2 (`fully_shard`), through
Lightning's ModelParallelStrategy.

Every block is a unit, and what is left of the model is another, whose weights stay whole from the forward pass to the
end of the backward pass: an objective reads the output layer outside of both. While a model is scored, samples or is
written down, every rank holds all of its weights (`sharding.whole`). It refuses compiled graphs and a single device;
what else it cannot do is refused by the check of the config (`fit_together`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from kleiber.trainer import Local


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
