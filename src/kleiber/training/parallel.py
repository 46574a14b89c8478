"""The trainer that divides the experts of a mixture over the devices.

The experts are DTensors. While a model is scored, generates or is saved, every rank holds all of its weights
(`sharding.full_parameters`), so they must fit on a device. Checkpoints have the format of the other trainers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kleiber.nn.dispatch import Experts
from kleiber.nn.sharding import is_sharded
from kleiber.training.trainer import DDP
from kleiber.types.model import Model


@dataclass(frozen=True)
class ExpertParallel(DDP):
    """DDP in which each device holds a share of the experts; gloo on CPUs, NCCL on GPUs.

    Every device trains on its own rows, as in DDP, and sends each token to the devices of its experts, which send the
    results back (`kleiber.nn.dispatch`). Attention, routers, shared experts and embeddings are whole on every device.
    The number of experts must divide by `devices`. Lepikhin et al. 2020, arXiv:2006.16668.
    """

    divides_experts: ClassVar[bool] = True

    def shard(self, model: Model) -> None:
        """Keeps only this rank's share of the experts. All ranks must have equal weights."""
        if self.devices == 1:
            return
        mesh = self.mesh()
        for module in model.modules():
            if isinstance(module, Experts):
                module.gate_up = divide(module.gate_up, mesh)
                module.down = divide(module.down, mesh)

    def strategy(self) -> Strategy | str:
        """Lightning's strategy: DDP with divided experts, or the one of a single device."""
        if self.devices == 1:
            return super().strategy()
        backend = "nccl" if self.accelerator == "gpu" else "gloo"
        timeout = timedelta(seconds=self.rank_timeout)
        return ExpertStrategy(process_group_backend=backend, timeout=timeout, gradient_as_bucket_view=True)


class ExpertStrategy(DDPStrategy):
    """Lightning's strategy for DDP in which experts are divided over all ranks."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        divided = {name: parameter for name, parameter in model.named_parameters() if is_sharded(parameter)}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(divided))
        for parameter in divided.values():
            if parameter.requires_grad:
                # Their gradients are sums over the tokens of all ranks; DDP averages those of other parameters.
                parameter.register_hook(self._average)
        return super()._setup_model(model)

    def _average(self, gradient: Tensor) -> Tensor:
        return gradient / self.world_size


def divide(parameter: Tensor, mesh: DeviceMesh) -> nn.Parameter:
    """This rank's rows of a parameter, without the memory of the other rows."""
    share = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
    return nn.Parameter(share, parameter.requires_grad)
