"""Checkpoints: one directory per step, written completely or not at all, and read only if its checksums match.

    step-00001000/  model.safetensors   weights under the model's own names
                    state.pt            optimizer state by parameter name, counters; loaded with weights_only=True
                    meta.json           sha256 of the other two, step, config hash; written last

A stage that trains a part of a model saves only that part; meta.json lists its names. Such a partial checkpoint is
loaded into a model that already has the other weights, by a caller that passes exactly those names.

The directory is written under a name with `.part-`, every file is flushed to the disk, and then it is renamed. Loading
never runs code: a state.pt that would need it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from kleiber.config.errors import ConfigError
from kleiber.nn.sharded_model import rows_of_rank
from kleiber.nn.sharding import is_sharded
from kleiber.records.files import DamagedFile, full_disk_error, read_json, rename_aside
from kleiber.types import Json

SCHEMA = "kleiber.checkpoint/1"
FILES = ("model.safetensors", "state.pt")


class Damaged(ValueError):
    """A checkpoint whose files are missing, incomplete, or different from those that its meta.json describes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums were verified."""

    path: Path
    meta: Json

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def names(self) -> frozenset[str] | None:
        """Names of the weights of a partial checkpoint; None for a whole model."""
        names = self.meta.get("names")
        return None if names is None else frozenset(names)

    def load_model(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Loads the weights into `model`: all of them, or exactly the `names` that were passed to `save`.

        Raises ValueError where names or shapes differ, and where a partial checkpoint is loaded without names or a
        whole one with names.
        """
        saved = self.names
        if names is None:
            self._refuse_part()
            try:
                self._load_file(model, strict=True)
            except RuntimeError as error:
                raise ValueError(f"{self.path} holds another model: {error}") from None
            return
        if saved is None or saved != frozenset(names):
            content = "a whole model" if saved is None else f"other weights: {sorted(saved ^ frozenset(names))[:5]}"
            raise ValueError(
                f"{self.path} holds {content}, but the model expects {len(frozenset(names))} weights by name"
            )
        state = model.state_dict(keep_vars=True)
        with safe_open(self.path / "model.safetensors", "pt") as file:
            shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wrong = [name for name, shape in shapes.items() if name not in state or state[name].shape != shape]
            if wrong or shapes.keys() != saved:
                raise ValueError(
                    f"{self.path} holds weights of another model: {(wrong or sorted(shapes.keys() ^ saved))[:5]}"
                )
            for name in shapes:
                read_tensor(file, name, state[name])

    def _load_file(self, model: nn.Module, strict: bool) -> tuple[Collection[str], Collection[str]]:
        """As safetensors' load_model, but reads only this rank's rows of sharded parameters."""
        path = self.path / "model.safetensors"
        if not any(is_sharded(parameter) for parameter in model.parameters()):
            return load_model(model, path, strict=strict)
        state = model.state_dict(keep_vars=True)
        with safe_open(path, "pt") as file:
            saved = set(file.keys())
            for name in saved & state.keys():
                read_tensor(file, name, state[name])
        loaded = {id(state[name]) for name in saved & state.keys()}
        missing, unexpected = [name for name in state if id(state[name]) not in loaded], saved - state.keys()
        if strict and (missing or unexpected):
            raise RuntimeError(f"weights of only the checkpoint or only this model:\n{[*missing, *unexpected][:5]}")
        return missing, unexpected

    def _refuse_part(self) -> None:
        if self.names is not None:
            raise ValueError(
                f"{self.path} holds only the {len(self.names)} weights that an adapter trained, not a whole model: "
                "load the model that it started from first (init.path of its run), then these weights by name"
            )

    def load_weights(self, model: nn.Module) -> None:
        """Loads the weights into a model whose task heads, and parts for later tokens, may differ.

        Raises ValueError for any other difference.
        """
        self._refuse_part()
        try:
            missing, unexpected = self._load_file(model, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{self.path} holds another model: {first_difference(error)}") from None
        other = sorted(name for name in (*missing, *unexpected) if not name.startswith(("heads.", "future.")))
        if other:
            raise ValueError(
                f"{self.path} holds another model: {', '.join(other[:5])} are weights of only the checkpoint or only "
                "this model; use the model settings of the checkpoint's run, or another checkpoint"
            )

    def load_state(self) -> Json:
        """The content of state.pt: states of optimizer, callbacks and retention methods, and the micro-batch size."""
        try:
            return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its text advises to run the code
            raise ConfigError(
                f"{self.path / 'state.pt'} is refused: it contains other objects than tensors, numbers and texts, and "
                f"loading those can run code; delete {self.path} to resume from an earlier checkpoint"
            ) from None


@torch.no_grad()
def read_tensor(file: safe_open, name: str, target: Tensor) -> None:
    """Reads a tensor of a safetensors file into `target`; this rank's rows of it where `target` is sharded.

    Raises RuntimeError where their shapes differ.
    """
    shape = torch.Size(file.get_slice(name).get_shape())
    if shape != target.shape:
        raise RuntimeError(f"another shape:\n{name} is {tuple(shape)} in the checkpoint, not {tuple(target.shape)}")
    if is_sharded(target):
        first, last = rows_of_rank(shape[0], target.device_mesh)
        target.to_local().copy_(file.get_slice(name)[first:last])
    else:
        target.copy_(file.get_tensor(name))


def first_difference(error: RuntimeError) -> str:
    """The first difference of two models, from PyTorch's error, which lists all of them."""
    return str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)


def name(step: int) -> str:
    """The name of the directory of a step's checkpoint."""
    return f"step-{step:08d}"


def trained_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights that a stage can change: parameters that require a gradient, and saved buffers."""
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(parameters | (model.state_dict().keys() - every))


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    state: Json,
    config_hash: str,
    names: Collection[str] | None = None,
) -> Checkpoint:
    """Writes `folder/step-<step>` with the whole model, or with the weights `names` of it (see `trained_names`).

    Raises OSError, which names the folder, where writing fails, and then leaves no incomplete directory.
    """
    final = folder / name(step)
    part = folder / f"{final.name}.part-{os.getpid()}"
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a killed writer; containers reuse process ids
        part.mkdir(parents=True)
        if names is None:
            save_model(model, str(part / "model.safetensors"))
        else:
            save_file(_chosen(model, names), part / "model.safetensors")
        torch.save(state, part / "state.pt")
        shutil.copymode(part / "state.pt", part / "model.safetensors")  # safetensors ignores the umask
        sha256 = {file: _digest(part / file) for file in FILES}
        meta = {"schema": SCHEMA, "step": step, "config_hash": config_hash, "sha256": sha256}
        meta |= {} if names is None else {"names": sorted(names)}
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        for file in part.iterdir():
            _sync(file)
        if final.is_dir() and not final.is_symlink():
            shutil.rmtree(final)
        elif os.path.lexists(final):
            rename_aside(final)
        _commit(part, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = full_disk_error(part, error) or error
        shutil.rmtree(part, ignore_errors=True)
        text = _write_failure(final, cause)
        raise (OSError(cause.errno, text) if isinstance(cause, OSError) else OSError(text)) from error
    return Checkpoint(final, meta)


def _write_failure(final: Path, cause: Exception) -> str:
    reason = cause.strerror.lower() if isinstance(cause, OSError) and cause.strerror else str(cause)
    safe = next((path for path in steps(final.parent) if path.name < final.name), None)
    kept = "there is no earlier one" if safe is None else f"the checkpoint before, {safe}, is intact"
    return f"{reason}: cannot write the checkpoint {final}; {kept}"


def _chosen(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    state = model.state_dict()
    assert names and state.keys() >= set(names), f"no weights of this model: {sorted(set(names) - state.keys())[:5]}"
    return {name: state[name].contiguous() for name in sorted(names)}


def _commit(part: Path, final: Path) -> None:
    os.replace(part, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`, after verifying it. Raises Damaged, which names the file."""
    meta = _read_meta(path / "meta.json")
    if name(meta["step"]) != path.name:
        raise Damaged(
            f"{path / 'meta.json'} is of step {meta['step']}, but its directory is {path.name}: rename the directory "
            f"to {name(meta['step'])}, or delete it to use another checkpoint"
        )
    for file in FILES:
        if not (path / file).is_file():
            raise Damaged(f"{path / file} is missing: restore the file, or delete this checkpoint to use an older one")
        if _digest(path / file) != meta["sha256"][file]:
            raise Damaged(
                f"{path / file} was changed after it was written, since its sha256 differs from that in meta.json: "
                f"restore the file, or delete {path} to use an earlier checkpoint"
            )
    return Checkpoint(path, meta)


def _read_meta(path: Path) -> Json:
    """The content of a meta.json. Raises Damaged for a key that is missing or has a value of another type."""
    try:
        meta = read_json(path)
    except DamagedFile as error:
        raise Damaged(str(error)) from None
    hashes, names, step = meta.get("sha256"), meta.get("names", []), meta.get("step")
    has_hashes = isinstance(hashes, dict) and all(isinstance(hashes.get(file), str) for file in FILES)
    has_names = isinstance(names, list) and all(isinstance(entry, str) for entry in names)
    for key, kind, is_correct in (
        ("step", "a number of steps", type(step) is int and step >= 0),
        ("sha256", f"the hashes of {' and '.join(FILES)}", has_hashes),
        ("names", "a list of names of weights", has_names),
    ):
        if not is_correct:
            value = str(meta.get(key, "missing"))[:60]
            raise Damaged(f"{path} is damaged: {key}={value} must be {kind}; delete {path.parent} to use an older one")
    return meta


def steps(folder: Path) -> list[Path]:
    """The directories of complete checkpoints, newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is valid (None without one), and the defect of each newer one."""
    defects: list[str] = []
    for path in steps(folder):
        try:
            return read(path), defects
        except Damaged as error:
            defects.append(str(error))
    return None, defects


def weights_sha256(folder: Path) -> str:
    """The sha256 of the newest checkpoint's weights by its meta.json, without reading the weights.

    Raises Damaged where no meta.json is valid.
    """
    for path in steps(folder):
        try:
            return _read_meta(path / "meta.json")["sha256"]["model.safetensors"]
        except Damaged:
            continue
    raise Damaged(f"{folder} has no valid checkpoint")


def latest_of(folder: Path) -> Checkpoint:
    """The newest valid checkpoint. Raises Damaged where there is none."""
    saved, defects = latest(folder)
    if saved is None:
        raise Damaged(f"{folder} has no valid checkpoint: {'; '.join(defects)}")
    return saved


def tidy(folder: Path, keep: int = 2, protected: Iterable[Path] = ()) -> None:
    """Removes all but the newest `keep` checkpoints and the protected ones, and what interrupted writes left."""
    for path in [*steps(folder)[keep:], *folder.glob("step-*.part-*")]:
        if path not in set(protected):
            shutil.rmtree(path, ignore_errors=True)
