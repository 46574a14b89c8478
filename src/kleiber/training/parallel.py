"""Trainers that divide a model over the devices: the experts of a mixture, or every block of a dense model.

Parameters that are divided are DTensors. While a model is scored, generates or is saved, every rank holds all of its
weights (`sharding.full_parameters`), so they must fit on a device. Checkpoints have the format of the other trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from kleiber.models.block import Block
from kleiber.nn.attention import FullAttention
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

    def shard(self, model: Model) -> None:
        """Keeps only this rank's share of the experts. All ranks must have equal weights."""
        if self.devices == 1:
            return
        mesh = self.mesh()
        for module in model.modules():
            if isinstance(module, Experts):
                module.gate_up = divide(module.gate_up, mesh, Shard(0))
                module.down = divide(module.down, mesh, Shard(0))

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


@dataclass(frozen=True)
class TensorParallel(DDP):
    """Tensor parallelism of a dense model: each device computes a share of every attention layer and MLP.

    All devices read the same rows. Each holds a part of the attention heads and of the hidden units of the MLPs, and
    adds its result to those of the others: one all-reduce after attention and one after the MLP, and as many in the
    backward pass. Embeddings, norms and output layers are whole on every device. Shoeybi et al. 2019,
    arXiv:1909.08053, section 3. gloo on CPUs, NCCL on GPUs.
    """

    @property
    def data_share(self) -> tuple[int, int]:
        """All rows, on every rank."""
        return 0, 1

    def shard(self, model: Model) -> None:
        """Keeps only this rank's attention heads and hidden units. All ranks must have equal weights.

        The output of a matrix that is divided by columns is this rank's part of the features, in which the input of the
        next matrix, divided by rows, is divided too.
        """
        if self.devices == 1:
            return
        mesh = self.mesh()
        for block in model.modules():
            if isinstance(block, Block):
                assert isinstance(block.attention, FullAttention)
                divide_attention(block.attention, mesh)
                divide_layers(block.mlp, {"gate_up": 2, "up": 1, "down": None}, mesh)

    def strategy(self) -> Strategy | str:
        """Lightning's strategy for divided blocks, or the one of a single device."""
        if self.devices == 1:
            return super().strategy()
        backend = "nccl" if self.accelerator == "gpu" else "gloo"
        return TensorStrategy(process_group_backend=backend, timeout=timedelta(seconds=self.rank_timeout))


class TensorStrategy(DDPStrategy):
    """Lightning's strategy for blocks that are divided over all ranks, which all train on the same batch.

    No gradient is averaged. Sums over ranks count every token `world_size` times, loss and divisor alike.
    """

    def configure_ddp(self) -> None:
        """Averages no gradients, and so does not wrap the module."""


def divide_layers(module: nn.Module, plan: Mapping[str, int | None], mesh: DeviceMesh) -> None:
    """Divides the linear layers of a module that the plan names and the module has.

    plan  by name of the layer: None for one that is divided by rows; for one that is divided by columns, the number of
          matrices that it consists of, such as gate and up, each of which is divided
    """
    for name, layer in module.named_children():
        if name in plan:
            assert isinstance(layer, nn.Linear)
            parts = plan[name]
            layer.weight = divide(
                layer.weight, mesh, Shard(1) if parts is None else _StridedShard(0, split_factor=parts)
            )
            layer.forward = partial(multiply_rows if parts is None else multiply_columns, layer)


def divide_attention(attention: FullAttention, mesh: DeviceMesh) -> None:
    """Divides the heads. Where queries share keys, their matrix stays whole, and a rank multiplies with its rows of it.

    The parts of that matrix have different sizes, which no placement of a DTensor describes.
    """
    divide_layers(attention, {"out": None}, mesh)
    heads, shared, dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    if heads == shared:
        divide_layers(attention, {"qkv": 3}, mesh)
    else:
        parts = torch.arange((heads + 2 * shared) * dim).split([heads * dim, shared * dim, shared * dim])
        mine = torch.cat([part.chunk(mesh.size())[mesh.get_local_rank()] for part in parts])
        rows = mine.to(attention.qkv.weight.device)
        attention.qkv.forward = partial(multiply_some_columns, attention.qkv, attention.out, rows)
    for parameter in attention.parameters():
        if parameter.requires_grad and not is_sharded(parameter):  # every rank has the gradient by its own heads
            parameter.register_hook(partial(add_up, mesh))


def multiply_some_columns(layer: nn.Linear, next_layer: nn.Linear, rows: Tensor, input: Tensor) -> Tensor:
    """As `multiply_columns`, with the `rows` of a weight that is whole, where that of the next layer is divided."""
    if not is_sharded(next_layer.weight):
        return F.linear(input, layer.weight)
    return F.linear(copy_input(input, next_layer.weight.device_mesh), layer.weight[rows])


def multiply_columns(layer: nn.Linear, input: Tensor) -> Tensor:
    """This rank's features of a bias-free linear layer, or all features if it is whole, of an input on all ranks."""
    if not is_sharded(layer.weight):
        return F.linear(input, layer.weight)
    return F.linear(copy_input(input, layer.weight.device_mesh), layer.weight.to_local())


def copy_input(input: Tensor, mesh: DeviceMesh) -> Tensor:
    """The same tensor, whose gradients are added up over ranks."""
    return DTensor.from_local(input, mesh, [Replicate()]).to_local(grad_placements=[Partial()])


def multiply_rows(layer: nn.Linear, input: Tensor) -> Tensor:
    """The output of a bias-free linear layer on all ranks, each of which has some of the input's features, or all."""
    if not is_sharded(layer.weight):
        return F.linear(input, layer.weight)
    product = F.linear(input, layer.weight.to_local())
    return DTensor.from_local(product, layer.weight.device_mesh, [Partial()]).full_tensor()


def add_up(mesh: DeviceMesh, gradient: Tensor) -> Tensor:
    """The sum of the gradients of all ranks."""
    return DTensor.from_local(gradient, mesh, [Partial()]).full_tensor()


def divide(parameter: Tensor, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    """This rank's share of a parameter, without the memory of the other shares."""
    share = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    return nn.Parameter(share, parameter.requires_grad)
