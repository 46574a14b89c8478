"""A checkpoint is a directory per step, written whole or not at all, and read only when every byte verifies.

    step-00001000/  model.safetensors   weights under the model's own names
                    state.pt            optimizer state by parameter name, counters; loaded with weights_only=True
                    meta.json           sha256 of the other two, step, config hash; written last

A stage that trains a part of a model writes that part alone: `names`, said in meta.json. Such a checkpoint is read into
a model that has the rest already, and only by a caller that expects exactly those names.

The directory is filled under a name with `.part-`, every file is flushed to the disk, then it is renamed. It never
unpickles code: a foreign state.pt is refused, and no message here suggests otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from kleiber.nn.sharding import place_like

SCHEMA = "kleiber.checkpoint/1"


class Damaged(ValueError):
    """A checkpoint whose files are missing, cut, or not those that its meta.json describes."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def names(self) -> frozenset[str] | None:
        """The weights that a partial checkpoint holds; None for one of a whole model."""
        told = self.meta.get("names")
        return None if told is None else frozenset(told)

    def load_model(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Weights into `model`: all of them, or exactly `names` and nothing else, as `save` was told.

        Raises ValueError when names or shapes differ, and where a whole model is asked of a part or a part of a whole.
        """
        held = self.names
        if names is None:
            self._refuse_part()
            try:
                load_model(model, self.path / "model.safetensors")
            except RuntimeError as error:
                raise ValueError(f"{self.path} holds another model: {error}") from None
            return
        if held is None or held != frozenset(names):
            told = "a whole model" if held is None else f"other weights: {sorted(held ^ frozenset(names))[:5]}"
            raise ValueError(f"{self.path} holds {told}; {len(frozenset(names))} weights by name were asked of it")
        own = model.state_dict(keep_vars=True)
        found = load_file(self.path / "model.safetensors")
        wrong = [n for n, value in found.items() if n not in own or own[n].shape != value.shape]
        if wrong or found.keys() != held:
            raise ValueError(f"{self.path} is of another model: {(wrong or sorted(found.keys() ^ held))[:5]}")
        with torch.no_grad():
            for name, value in found.items():
                own[name].copy_(value)

    def _refuse_part(self) -> None:
        if self.names is not None:
            raise ValueError(
                f"{self.path} holds {len(self.names)} weights that an adapter trained, not a whole model: "
                "load the model it started from first (init.path of its run), then these by name"
            )

    def load_weights(self, model: nn.Module) -> None:
        """Weights into a model that may have other heads of tasks. Raises ValueError when anything else differs."""
        self._refuse_part()
        try:
            missing, unexpected = load_model(model, self.path / "model.safetensors", strict=False)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"{self.path} holds another model: {first}") from None
        other = sorted(name for name in (*missing, *unexpected) if not name.startswith("heads."))
        if other:
            raise ValueError(f"{self.path} holds another model: {', '.join(other[:5])} stand in only one of the two")

    def load_state(self) -> dict[str, Any]:
        return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)


def name(step: int) -> str:
    return f"step-{step:08d}"


def trained(model: nn.Module) -> frozenset[str]:
    """What a stage can have changed: the parameters that require a gradient, and every buffer that is saved."""
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(parameters | (model.state_dict().keys() - every))


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    state: dict[str, Any],
    config_hash: str,
    names: Collection[str] | None = None,
) -> Checkpoint:
    """Writes `folder/step-<step>`, the whole model or the weights `names` of it (see `trained`).

    Raises OSError with the folder named when the disk refuses, leaving no bad file.
    """
    final = folder / name(step)
    part = folder / f"{final.name}.part-{os.getpid()}"
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a killed writer; in containers process ids come again
        part.mkdir(parents=True)
        if names is None:
            save_model(model, str(part / "model.safetensors"))
        else:
            save_file(_chosen(model, names), part / "model.safetensors")
        torch.save(state, part / "state.pt")
        sha256 = {file: _digest(part / file) for file in ("model.safetensors", "state.pt")}
        meta = {"schema": SCHEMA, "step": step, "config_hash": config_hash, "sha256": sha256}
        meta |= {} if names is None else {"names": sorted(names)}
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        for file in part.iterdir():
            _sync(file)
        if final.exists():
            shutil.rmtree(final)
        _commit(part, final)
    except (OSError, RuntimeError) as error:  # torch.save on a full disk raises RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"cannot write the checkpoint {final} ({error}); the one before it is untouched") from error
    return Checkpoint(final, meta)


def _chosen(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    own = model.state_dict()
    assert names and own.keys() >= set(names), f"no weights of this model: {sorted(set(names) - own.keys())[:5]}"
    return {name: own[name].contiguous() for name in sorted(names)}


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
    """The checkpoint at `path`, verified. Raises Damaged, naming the file."""
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path / 'meta.json'}: {error}") from None
    if name(meta["step"]) != path.name:
        raise Damaged(f"{path / 'meta.json'} is of step {meta['step']}")
    for file, expected in meta["sha256"].items():
        if not (path / file).is_file():
            raise Damaged(f"{path / file} is missing")
        if _digest(path / file) != expected:
            raise Damaged(f"{path / file} is not the file that was written: its sha256 differs")
    return Checkpoint(path, meta)


def steps(folder: Path) -> list[Path]:
    """Checkpoint directories under final names, newest first."""
    return sorted(folder.glob("step-????????"), reverse=True)


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with each newer one."""
    complaints: list[str] = []
    for path in steps(folder):
        try:
            return read(path), complaints
        except Damaged as error:
            complaints.append(str(error))
    return None, complaints


def tidy(folder: Path, keep: int = 2, protected: Iterable[Path] = ()) -> None:
    """Removes all but the newest `keep` checkpoints and the protected ones, and what killed writers left behind."""
    for path in [*steps(folder)[keep:], *folder.glob("step-*.part-*")]:
        if path not in set(protected):
            shutil.rmtree(path, ignore_errors=True)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, independent of how parameters are grouped."""
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts state by parameter name back. Raises ValueError when names differ."""
    own = {n: p for group in optimizer.param_groups for n, p in zip(group["names"], group["params"], strict=True)}
    if state and state.keys() != own.keys():
        raise ValueError(f"optimizer state is for other parameters: {sorted(state.keys() ^ own.keys())[:5]}")
    for name, values in state.items():
        # Adam's step count lives on the parameter's device only when fused or capturable, which is how it was saved.
        optimizer.state[own[name]] = {key: place_like(value, own[name]) for key, value in values.items()}
