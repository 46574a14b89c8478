"""Models whose weights are sharded over ranks by FSDP2: how they are built, sharded and copied.

Nothing here imports FSDP or DTensor before something is sharded, because that import is slow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from kleiber.nn.sharding import full_tensor, is_sharded, place_like, sharded_modules
from kleiber.types.model import LOW_RANK, Model

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

M = TypeVar("M", bound=nn.Module)


def shard(model: Model, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Keeps only this rank's share of every parameter, in place.

    A parameter that is not sharded yet must be equal on all ranks. Each block is a unit of sharding. The rest of the
    model is another, whose weights stay gathered from the forward pass to the end of the backward pass, because
    objectives read the output layer outside of the forward pass.

    dtype  in which the matrices of blocks are gathered, where it is that of autocast; None: in their own precision.
           Shares, their gradients and the sums of these over ranks stay in fp32, because a sum in bf16 over many ranks
           loses small terms. Weights that autocast does not round, such as gains and routers, are gathered with the
           rest of the model
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # FSDP2 takes whole parameters. Those that are shards already get their place only for that, without memory.
    held = [(m, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
    shards = [(module, name, parameter) for module, name, parameter in held if is_sharded(parameter.data)]
    placeholders: dict[int, nn.Parameter] = {}  # by parameter, because tied ones stay one
    for module, name, parameter in shards:
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        placeholder = placeholders.setdefault(id(parameter), nn.Parameter(empty, parameter.requires_grad))
        module._parameters[name] = placeholder
    rounded = set() if dtype is None else matrices_of_blocks(model)
    outside, policy = nn.ParameterList(), MixedPrecisionPolicy()
    if rounded:
        outside.extend(p for block in model.blocks for p in block.parameters() if p not in rounded)
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params={*outside})
    model.add_module("outside_blocks", outside)  # FSDP2 does not look into blocks a second time
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    del model.outside_blocks
    for module, name, parameter in shards:
        module._parameters[name] = parameter


def matrices_of_blocks(model: Model) -> set[nn.Parameter]:
    """The parameters of blocks that autocast rounds; none where low-rank updates are added to them, in fp32."""
    roles = model.roles()
    if any(name.endswith(LOW_RANK) for name in roles):
        return set()
    inside = {parameter for block in model.blocks for parameter in block.parameters()}
    return {model.get_parameter(name) for name, role in roles.items() if role.kind == "hidden"} & inside


@contextmanager
def sharded_blocks(mesh: DeviceMesh) -> Iterator[None]:
    """Within the context, a module that joins an nn.ModuleList keeps only this rank's share of its parameters.

    A rank that builds a model therefore never holds more than one whole block, beside what is outside of the blocks,
    and draws the same weights. `shard` turns the result into a model that gathers its shards. Blocks of transformers
    stay whole, since it draws weights after all blocks are built. Raises ValueError at the end for another model that
    does.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    versions: list[tuple[str, Tensor, int]] = []

    def keep_share(owner: nn.Module, name: str, module: nn.Module | None) -> None:
        """Replaces the parameters of a module that joins a list by this rank's shares."""
        if module is None or not isinstance(owner, nn.ModuleList) or type(module).__module__.startswith("transformers"):
            return
        shares = {id(p): _share(p, mesh) for p in module.parameters() if not is_sharded(p)}
        versions.extend((f"{type(module).__name__} {name}", share, share._version) for share in shares.values())
        for part in module.modules():
            for key, parameter in part._parameters.items():
                if parameter is not None and not is_sharded(parameter):
                    part._parameters[key] = shares[id(parameter)]

    with register_module_module_registration_hook(keep_share):
        yield
    changed = [name for name, share, version in versions if share._version != version]
    if changed:
        raise ValueError(
            f"the model changes weights of {changed[0]} after it joined its list, where trainer=fsdp has already "
            "sharded them: draw the weights of a block when it is built, or set trainer=ddp"
        )


def _share(parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """This rank's rows of a parameter that is equal on all ranks."""
    from torch.distributed.tensor import DTensor, Shard

    first, last = rows_of_rank(len(parameter), mesh)
    rows = parameter.detach()[first:last].clone()
    shape, stride = parameter.shape, parameter.stride()
    share = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
    return nn.Parameter(share, parameter.requires_grad)


def rows_of_rank(rows: int, mesh: DeviceMesh) -> tuple[int, int]:
    """The first row of this rank's share of a tensor, and the one after the last, as FSDP2 divides them."""
    share = -(-rows // mesh.size())
    first = min(rows, mesh.get_local_rank() * share)
    return first, min(rows, first + share)


def copy_model(model: M, whole: bool = False) -> M:
    """A deep copy of a model, without gradients and hooks; its parameters are shards where those of the model are now.

    `shard` makes a model of it that gathers its shards; within `full_parameters`, the copy is a plain model.

    whole  gathers every parameter for the copy, which is a plain model then (collective)
    """
    parts = sharded_modules(model)
    if not any(map(is_sharded, model.parameters())) and not parts:
        return copy.deepcopy(model)
    copies: dict[int, object] = {
        id(p): nn.Parameter(full_tensor(p.detach()) if whole and is_sharded(p) else p.detach().clone(), p.requires_grad)
        for p in model.parameters()
    }
    # Hooks and states of FSDP2 refuse to be copied, and the copy gets empty ones.
    for module in model.modules():
        for name, value in vars(module).items():
            if name.endswith("_hooks") or name.startswith("__composable_api"):
                copies[id(value)] = type(value)()
    classes = [type(part) for part in parts]
    for part, cls in zip(parts, classes, strict=True):
        part.__class__ = cls.__mro__[2]
    try:
        return copy.deepcopy(model, copies)
    finally:
        for part, cls in zip(parts, classes, strict=True):
            part.__class__ = cls


@contextmanager
def whole_model(model: M) -> Iterator[M]:
    """The model, or where it is sharded a whole copy of it, whose weights are those of the model at the end."""
    if not any(map(is_sharded, model.parameters())):
        yield model
        return
    whole = copy_model(model, whole=True)
    yield whole
    weights = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            placed = place_like(weights[name], value)
            assert isinstance(placed, Tensor)
            value.copy_(placed)
