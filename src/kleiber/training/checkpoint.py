"""Checkpoints: one directory per step, written completely or not at all, and read only if its checksums match.

    step-00001000/  model.safetensors   weights under the model's own names
                    state.pt            optimizer state by parameter name, counters; loaded with weights_only=True
                    meta.json           sha256 of the other files, step, config hash; written last

Where ranks save their own shards, weights/ takes the place of model.safetensors, and state/ has what is sharded of
state.pt, each with a file of every rank (`shard_files`). Any number of ranks reads either kind.

A stage that trains a part of a model saves only that part; meta.json lists its names. Such a partial checkpoint is
loaded into a model that already has the other weights, by a caller that passes exactly those names.

The directory is written under a name with `.part-`, every file is flushed to the disk, and then it is renamed. Loading
never runs code: a state.pt that would need it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from kleiber.config.system_errors import naming
from kleiber.records.arrays import check_stored
from kleiber.records.files import full_disk_error, read_json, write_text
from kleiber.records.model_files import check_safetensors
from kleiber.records.regular_files import DamagedFile, file_sha256, make_folder, rename_aside
from kleiber.training import shard_files
from kleiber.training.saved_checkpoint import STATE, WEIGHTS, Checkpoint, Damaged, warn_of_damage
from kleiber.training.snapshot import Snapshot, copy_tensors
from kleiber.types import Json

SCHEMA = "kleiber.checkpoint/1"
FILE = re.compile(rf"model\.safetensors|state\.pt|({WEIGHTS}|{STATE})/[\w-]+\.safetensors")  # beside meta.json


def name(step: int) -> str:
    """The name of the directory of a step's checkpoint."""
    return f"step-{step:08d}"


def trained_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights that a stage can change: parameters that require a gradient, and saved buffers."""
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(parameters | (model.state_dict().keys() - every))


def save(
    folder: Path, step: int, model: nn.Module, state: Json, config_hash: str, names: Collection[str] | None = None
) -> Checkpoint:
    """Writes `folder/step-<step>` with the whole model, or with the weights `names` of it (see `trained_names`).

    Raises OSError, which names the folder, where writing fails, and then leaves no incomplete directory.
    """
    final = folder / name(step)
    with _new_directory(final) as part:
        if names is None:
            save_model(_without_views(model), str(part / "model.safetensors"))
        else:
            save_file(_chosen(model, names), part / "model.safetensors")
        torch.save(state, part / "state.pt")
        shutil.copymode(part / "state.pt", part / "model.safetensors")  # safetensors ignores the umask
        sha256 = {file: file_sha256(part / file) for file in ("model.safetensors", "state.pt")}
        return _complete(part, final, step, config_hash, sha256, names)


def save_shards(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: Json,
    shards: Mapping[str, Tensor],
    config_hash: str,
    names: Collection[str] | None,
    mesh: DeviceMesh,
    pid: int,
) -> None:
    """Writes `folder/step-<step>` from all ranks, each with its rows; returns when all of it is on the disk.

    weights        of the whole model by name, or the weights `names`
    state, shards  from `shard_files.split_shards`
    mesh           of all ranks
    pid            of rank 0, in the name of the directory while it is incomplete

    Raises OSError, as `save` does.
    """
    final, rank = folder / name(step), mesh.get_local_rank()
    with _new_directory(final, pid, is_owner=rank == 0) as part:
        dist.barrier(mesh.get_group())
        shard_files.write_tensors(part / WEIGHTS, weights, mesh)
        if shards:
            shard_files.write_tensors(part / STATE, shards, mesh)
        hashes: list[dict[str, str]] = [{} for _ in range(mesh.size())]
        files = shard_files.files_of_rank(part, rank)
        for file in files:
            _sync(file)
        mine = {str(file.relative_to(part)): file_sha256(file) for file in files}
        dist.all_gather_object(hashes, mine, group=mesh.get_group())
        if rank == 0:
            torch.save(state, part / "state.pt")
            sha256 = {"state.pt": file_sha256(part / "state.pt")} | {k: v for each in hashes for k, v in each.items()}
            _complete(part, final, step, config_hash, sha256, names)
        dist.barrier(mesh.get_group())


def make_folder_of_stage(folder: Path) -> None:
    """Makes the folder RUN/stages/STAGE/NAME of checkpoints. Raises DamagedFile where one of them is a link."""
    place = folder.absolute()
    make_folder(place.parents[2], *place.parts[-3:])


@contextmanager
def _new_directory(final: Path, pid: int | None = None, is_owner: bool = True) -> Iterator[Path]:
    """An empty directory beside `final`; removed where writing fails, which raises an OSError that names `final`."""
    part = final.with_name(f"{final.name}.part-{os.getpid() if pid is None else pid}")
    try:
        if is_owner:
            shutil.rmtree(part, ignore_errors=True)  # of a killed writer; containers reuse process ids
            make_folder_of_stage(final.parent)
            part.mkdir()
        yield part
    except (OSError, RuntimeError, SafetensorError, DamagedFile) as error:
        cause = full_disk_error(part, error) or error
        shutil.rmtree(part, ignore_errors=True)
        text = _write_failure(final, cause)
        raise (OSError(cause.errno, text) if isinstance(cause, OSError) else OSError(text)) from error


def _complete(
    part: Path, final: Path, step: int, config_hash: str, sha256: Mapping[str, str], names: Collection[str] | None
) -> Checkpoint:
    """Writes meta.json, flushes all files, and gives the directory its final name."""
    meta: Json = {"schema": SCHEMA, "step": step, "config_hash": config_hash, "sha256": dict(sha256)}
    meta |= {} if names is None else {"names": sorted(names)}
    write_text(part / "meta.json", json.dumps(meta, indent=1))
    for path in (*part.rglob("*"), part):
        _sync(path)
    put_in_place(part, final)
    return Checkpoint(final, meta)


def put_in_place(part: Path, final: Path) -> None:
    """Gives the directory of a complete checkpoint its final name, in place of a checkpoint that has it."""
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(final)
    elif os.path.lexists(final):
        rename_aside(final)
    _commit(part, final)


def _write_failure(final: Path, cause: Exception) -> str:
    reason = cause.strerror.lower() if isinstance(cause, OSError) and cause.strerror else str(cause)
    safe = next((path for path in steps(final.parent) if path.name < final.name), None)
    kept = "there is no earlier one" if safe is None else f"the checkpoint before, {safe}, is intact"
    return f"{reason}: cannot write the checkpoint {final}; {kept}"


def _chosen(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    state = model.state_dict()
    assert names and state.keys() >= set(names), f"no weights of this model: {sorted(set(names) - state.keys())[:5]}"
    return {name: state[name].contiguous() for name in sorted(names)}


def _without_views(model: nn.Module) -> nn.Module:
    """The model, or a copy where a tensor is a part of a larger one, as FSDP2 gathers it; safetensors refuses those."""
    state = model.state_dict()
    if all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values()):
        return model
    return Snapshot(copy_tensors(state))


def _commit(part: Path, final: Path) -> None:
    os.replace(part, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`, after verifying it. Raises Damaged, which names the file."""
    meta = read_meta(path / "meta.json")
    if name(meta["step"]) != path.name:
        raise Damaged(
            f"{path / 'meta.json'} is of step {meta['step']}, but its directory is {path.name}: rename the directory "
            f"to {name(meta['step'])}, or delete it to use another checkpoint"
        )
    for file in meta["sha256"]:
        if not (path / file).is_file():  # a pipe or a device is none
            raise Damaged(f"{path / file} is missing: restore the file, or delete this checkpoint to use an older one")
        if file_sha256(path / file) != meta["sha256"][file]:
            raise Damaged(
                f"{path / file} was changed after it was written, since its sha256 differs from that in meta.json: "
                f"restore the file, or delete {path} to use an earlier checkpoint"
            )
        _check_content(path / file)
    return Checkpoint(path, meta)


def _check_content(path: Path) -> None:
    """Raises Damaged for a file that PyTorch or safetensors did not write, though meta.json has its hash."""
    try:
        if path.suffix == ".safetensors":
            check_safetensors(path)
        else:
            check_stored(path)
    except DamagedFile as error:
        raise Damaged(f"{error}; delete the checkpoint to use an older one") from None


def read_meta(path: Path) -> Json:
    """The content of a meta.json. Raises Damaged for a key that is missing or has a value of another type."""
    try:
        meta = read_json(path)
    except DamagedFile as error:
        raise Damaged(str(error)) from None
    hashes, names, step = meta.get("sha256"), meta.get("names", []), meta.get("step")
    files: Json = hashes if isinstance(hashes, dict) else {}
    has_hashes = "state.pt" in files and any(_has_weights(file) for file in files)
    has_hashes = has_hashes and all(isinstance(files[name], str) and FILE.fullmatch(name) for name in files)
    has_names = isinstance(names, list) and all(isinstance(entry, str) for entry in names)
    for key, kind, is_correct in (
        ("step", "a number of steps", type(step) is int and step >= 0),
        ("sha256", "the hashes of state.pt and the weights", has_hashes),
        ("names", "a list of names of weights", has_names),
    ):
        if not is_correct:
            value = str(meta.get(key, "missing"))[:60]
            raise Damaged(f"{path} is damaged: {key}={value} must be {kind}; delete {path.parent} to use an older one")
    return meta


def _has_weights(file: str) -> bool:
    return file == "model.safetensors" or file.startswith(f"{WEIGHTS}/")


def steps(folder: Path) -> list[Path]:
    """The directories of complete checkpoints, newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def newest_step(folder: Path) -> int:
    """The step of the newest complete checkpoint; 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in steps(folder)), default=0)


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is valid (None without one), and the defect of each newer one."""
    defects: list[str] = []
    for path in steps(folder):
        try:
            return read(path), defects
        except Damaged as error:
            defects.append(str(error))
    return None, defects


def latest_of(folder: Path) -> Checkpoint:
    """The newest valid checkpoint; prints the defect of each newer one once. Raises Damaged where there is none."""
    saved, defects = latest(folder)
    if saved is None:
        raise Damaged(f"{folder} has no valid checkpoint: {'; '.join(defects)}")
    warn_of_damage(defects)
    return saved


def weights_sha256(folder: Path) -> str:
    """The sha256 of the weights of the checkpoint that `latest_of` returns, which is the one that is loaded."""
    hashes = latest_of(folder).meta["sha256"]
    sharded = "\n".join(f"{hashes[file]} {file}" for file in sorted(hashes) if _has_weights(file))
    return hashes.get("model.safetensors") or hashlib.sha256(sharded.encode()).hexdigest()


def tidy(folder: Path, keep: int = 2, protected: Iterable[Path] = ()) -> None:
    """Removes all but the newest `keep` checkpoints and the protected ones, and what interrupted writes left."""
    for path in [*steps(folder)[keep:], *folder.glob("step-*.part-*")]:
        if path not in set(protected):
            shutil.rmtree(path, ignore_errors=True)
