"""A checkpoint on disk, and how its weights and states are loaded into a model that is whole or sharded."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import nn

from kleiber.config.errors import ConfigError
from kleiber.nn.sharding import is_sharded
from kleiber.records.terminal import warn_once
from kleiber.training import shard_files
from kleiber.types import Json
from kleiber.types.ranks import rank

PARTS = ("optimizer", "callbacks", "retention")  # of a state
WEIGHTS, STATE = "weights", "state"  # folders of the ranks' files


class Damaged(ValueError):
    """A checkpoint whose files are missing, incomplete, or different from those that its meta.json describes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums were verified."""

    path: Path
    meta: Json

    @property
    def step(self) -> int:
        """Number of optimizer steps before it."""
        return self.meta["step"]

    @property
    def names(self) -> frozenset[str] | None:
        """Names of the weights of a partial checkpoint; None for a whole model."""
        names = self.meta.get("names")
        return None if names is None else frozenset(names)

    @property
    def is_sharded(self) -> bool:
        """Whether the ranks that trained the model have each written their own rows."""
        return "model.safetensors" not in self.meta["sha256"]

    @property
    def weights(self) -> Path:
        """The folder of the safetensors files with the weights."""
        return self.path / WEIGHTS if self.is_sharded else self.path

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each saved weight, by name; without the other names of a tied one."""
        return {name: tensor.shape for name, tensor in shard_files.tensor_shapes(self.weights).items()}

    def load_model(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Loads the weights into `model`: all of them, or exactly the `names` that were passed to `save`.

        Raises ValueError where names or shapes differ, and where a partial checkpoint is loaded without names or a
        whole one with names.
        """
        saved = self.names
        if names is None:
            self._refuse_part()
            try:
                self._load(model, strict=True)
            except RuntimeError as error:
                raise ValueError(f"{self.path} holds another model: {error}") from None
            return
        if saved is None or saved != frozenset(names):
            content = "a whole model" if saved is None else f"other weights: {sorted(saved ^ frozenset(names))[:5]}"
            raise ValueError(
                f"{self.path} holds {content}, but the model expects {len(frozenset(names))} weights by name"
            )
        state, shapes = model.state_dict(keep_vars=True), self.shapes()
        wrong = [name for name, shape in shapes.items() if name not in state or state[name].shape != shape]
        if wrong or shapes.keys() != saved:
            raise ValueError(
                f"{self.path} holds weights of another model: {(wrong or sorted(shapes.keys() ^ saved))[:5]}"
            )
        shard_files.read_tensors(self.weights, {name: state[name] for name in shapes})

    def _load(self, model: nn.Module, strict: bool) -> tuple[Collection[str], Collection[str]]:
        if self.is_sharded or any(is_sharded(parameter) for parameter in model.parameters()):
            return shard_files.load_weights(model, self.weights, strict)
        return load_model(model, self.path / "model.safetensors", strict=strict)

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
            missing, unexpected = self._load(model, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{self.path} holds another model: {first_difference(error)}") from None
        other = sorted(name for name in (*missing, *unexpected) if not name.startswith(("heads.", "future.")))
        if other:
            raise ValueError(
                f"{self.path} holds another model: {', '.join(other[:5])} are weights of only the checkpoint or only "
                "this model; use the model settings of the checkpoint's run, or another checkpoint"
            )

    def load_state(self, model: nn.Module | None = None) -> Json:
        """The states of optimizer, callbacks and retention methods, and the micro-batch size.

        model  whose shards decide which tensors are read as shards, where ranks have saved their own; None: none are

        Raises ConfigError, which names the file, for content that `save` does not write.
        """
        path, advice = self.path / "state.pt", f"delete {self.path} to resume from an earlier checkpoint"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            wrong = [key for key in PARTS if not isinstance(dict(state).get(key, {}), dict)]
        except pickle.UnpicklingError:  # its text advises to run the code
            raise ConfigError(
                f"{path} is refused: it contains other objects than tensors, numbers and texts, and loading those can "
                f"run code; {advice}"
            ) from None
        except Exception as error:  # of many types, by the unpickler
            raise ConfigError(f"{path} is damaged: {error}; {advice}") from None
        if wrong:
            raise ConfigError(f"{path} is damaged: {wrong[0]} must be a mapping; {advice}")
        return shard_files.join_shards(state, self.path / STATE, model) if self.is_sharded else state


def first_difference(error: RuntimeError) -> str:
    """The first difference of two models, from PyTorch's error, which lists all of them."""
    return str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)


def warn_of_damage(defects: Iterable[str]) -> None:
    """Prints the defects of checkpoints that were passed over: each once in a process, and only on rank 0."""
    for defect in defects if rank() == 0 else ():
        warn_once(f"skipped a damaged checkpoint: {defect}")
