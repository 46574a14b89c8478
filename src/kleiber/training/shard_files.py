"""Files of sharded tensors: each rank writes its rows to a file of its own, and any number of ranks reads them.

The format is that of torch.distributed.checkpoint for safetensors, in which a file's header has the offsets of its
rows. A single whole safetensors file is read in the same way. No pickle is read, so that loading never runs code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kleiber.nn.sharding import is_sharded
from kleiber.training.snapshot import copy_tensors
from kleiber.types import Json

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SHARDED = "sharded:"  # before the name of a tensor, in place of the tensor, in a state without shards


@cache
def writers_mesh() -> DeviceMesh:
    """All ranks as a line on CPUs, in a process group that is only used to write files; all must call it."""
    from torch.distributed.device_mesh import DeviceMesh

    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return DeviceMesh.from_group(group, "cpu")


def split_shards(state: Json, mesh: DeviceMesh) -> tuple[Json, dict[str, Tensor]]:
    """Copies of a nested state on the CPU: the state with a name in place of each shard, and the shards by that name.

    mesh  of `writers_mesh`
    """
    from torch.distributed.tensor import DTensor

    shards: dict[str, Tensor] = {}

    def split(path: str, value: object) -> object:
        """The value without its shards."""
        if isinstance(value, dict):
            return {key: split(f"{path}/{key}" if path else str(key), entry) for key, entry in value.items()}
        if not is_sharded(value):
            return value
        rows = value.to_local().detach().to("cpu", copy=True)
        shape, stride = value.shape, value.stride()
        shards[path] = DTensor.from_local(rows, mesh, value.placements, run_check=False, shape=shape, stride=stride)
        return SHARDED + path

    rest = {key: split(str(key), value) for key, value in state.items()}
    return copy_tensors(rest), shards


def join_shards(state: Json, folder: Path, model: nn.Module | None) -> Json:
    """A nested state with the tensors in place of the names that `split_shards` put there.

    A tensor is this rank's share where a parameter whose name is part of its path is sharded, and whole elsewhere.
    """
    paths = [path for path, value in _leaves(state) if isinstance(value, str) and value.startswith(SHARDED)]
    if not paths:
        return state
    parameters = {} if model is None else dict(model.named_parameters(remove_duplicate=False))
    saved = tensor_shapes(folder)
    tensors = {"/".join(path): _target(path, saved["/".join(path)], parameters) for path in paths}
    read_tensors(folder, tensors)

    def join(value: object) -> object:
        """The value with its shards."""
        if isinstance(value, dict):
            return {key: join(entry) for key, entry in value.items()}
        return tensors[value.removeprefix(SHARDED)] if isinstance(value, str) and value.startswith(SHARDED) else value

    return {key: join(value) for key, value in state.items()}


def _leaves(state: Json, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    leaves: list[tuple[tuple[str, ...], object]] = []
    for key, value in state.items():
        path = (*above, str(key))
        leaves += _leaves(value, path) if isinstance(value, dict) else [(path, value)]
    return leaves


def _target(path: tuple[str, ...], like: Tensor, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """An empty tensor for the one at `path`, whose shape and type are those of `like`."""
    for name in path:
        if name in parameters and parameters[name].shape == like.shape:
            return torch.empty_like(parameters[name], dtype=like.dtype, requires_grad=False)
    return torch.empty_like(like, device="cpu")


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], mesh: DeviceMesh) -> None:
    """Writes tensors by name, each rank the rows that it has; of tensors that all ranks have, one rank each.

    Raises OSError on all ranks where one of them cannot write.
    """
    import torch.distributed.checkpoint as distributed

    writer = distributed.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        distributed.save(dict(tensors), storage_writer=writer, process_group=mesh.get_group())
    except distributed.CheckpointException as failed:  # which is no Exception
        cause, _ = next(iter(failed.failures.values()))
        raise (cause if isinstance(cause, OSError) else OSError(str(cause))) from None


def files_of_rank(folder: Path, rank: int) -> list[Path]:
    """The files of `write_tensors` in all parts of a folder that a rank has written."""
    return sorted(folder.glob(f"*/shard-{rank + 1:05d}-*"))


def tensor_shapes(folder: Path) -> dict[str, Tensor]:
    """An empty tensor on the meta device for each tensor in the files of a folder, by name."""
    import torch.distributed.checkpoint as distributed

    saved = distributed.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: entry for name, entry in saved.items() if isinstance(entry, distributed.TensorStorageMetadata)}
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta") for name, entry in tensors.items()
    }


@torch.no_grad()
def read_tensors(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Reads tensors of the files of a folder into `targets` by name; of a sharded target this rank's rows."""
    import torch.distributed.checkpoint as distributed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a single process reads: each rank reads for itself
        reader = distributed.HuggingFaceStorageReader(str(folder))
        distributed.load({name: value.detach() for name, value in targets.items()}, storage_reader=reader, no_dist=True)


def load_weights(model: nn.Module, folder: Path, strict: bool = True) -> tuple[list[str], list[str]]:
    """Loads the weights in the files of a folder; returns the names of only the model, and those of only the files.

    Raises RuntimeError, as PyTorch does, for other shapes and, with `strict`, for other names.
    """
    saved, state = tensor_shapes(folder), model.state_dict(keep_vars=True)
    common = saved.keys() & state.keys()
    for name in sorted(common):
        if saved[name].shape != state[name].shape:
            shapes = f"{tuple(saved[name].shape)} in the checkpoint, not {tuple(state[name].shape)}"
            raise RuntimeError(f"another shape:\n{name} is {shapes}")
    loaded = {id(state[name]) for name in common}
    missing, unexpected = [name for name in state if id(state[name]) not in loaded], sorted(saved.keys() - state.keys())
    if strict and (missing or unexpected):
        raise RuntimeError(f"weights of only the checkpoint or only this model:\n{[*missing, *unexpected][:5]}")
    read_tensors(folder, {name: state[name] for name in common})
    return missing, unexpected
