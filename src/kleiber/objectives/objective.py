"""What several objectives share: names of output layers, auxiliary losses per token, collected rows, frozen references.

A frozen reference is the model as it was before training. It is asked once; its values lie in the stage's folder with
the hashes of the data and of the weights, where a resumed stage reads them, and in the cache of the data under the same
hashes, where other runs from the same weights find them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kleiber.data.preference import AnswerCorpus, PairRows
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model


def rescaled(output: Output, batch: Batch, count: int | Tensor) -> dict[str, Tensor]:
    """The aux sums of `output` over the real tokens of `batch`, times count / tokens.

    Divided by `count`, the number that the objective's own sum is over, they are means per token again, so that a
    coefficient means the same in pre-training and fine-tuning. Counts of assignments stay counts.
    """
    if not output.aux:
        return {}
    tokens = batch.tokens.numel() if batch.real is None else torch.clamp(batch.real.sum(), min=1)
    return {name: value if name.startswith("load/") else value * (count / tokens) for name, value in output.aux.items()}


def head_name(task: str, *meaning: Any) -> str:
    """The key of a task's output layer in a model: its name, and a digest of what the outputs stand for, so that tasks
    whose names alone agree have layers of their own."""
    return f"{task.replace('.', '_')}-{hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:8]}"


class Collected:
    """Rows by sample number. `whole` has each sample once, in order, so no metric of it can depend on the ranks."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.columns: list[dict[str, Tensor]] = []

    def add(self, samples: Tensor | None, **columns: Tensor) -> None:
        assert samples is not None, "samples are told apart by their numbers"
        self.samples.append(samples.detach().cpu())
        self.columns.append({name: value.detach().cpu() for name, value in columns.items()})

    def whole(self) -> dict[str, Tensor]:
        mine: Any = (self.samples, self.columns)
        parts: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, mine)
        samples = torch.cat([s for part in parts for s in part[0]])
        order = torch.argsort(samples, stable=True)
        first = torch.ones(len(samples), dtype=torch.bool)
        first[1:] = samples[order][1:] != samples[order][:-1]  # with few samples every rank has scored all
        columns = [columns for part in parts for columns in part[1]]
        return {name: torch.cat([c[name] for c in columns])[order[first]] for name in columns[0]}


NAME = "reference"  # .npz and .json in the stage's folder

Values = dict[str, np.ndarray]  # by split


def set_reference(
    model: Model | None,
    corpus: AnswerCorpus,
    folder: Path,
    rows: Mapping[str, PairRows],
    ask: Callable[[Model, PairRows], np.ndarray],
    part: str = "",
) -> None:
    """Sets `reference` of the rows of each split to what `ask` returned for the model that the stage began with.

    It comes from `folder` of the stage, from the cache of `corpus`, or from `ask` now; `part` names what is asked where
    that is not all of the corpus. Once the stage has checkpoints, `folder` alone counts. Before its first checkpoint
    the values are computed again if the weights differ (a start point that was trained anew). `model` may be None where
    the stage has checkpoints. Raises ValueError for a stage with checkpoints whose values are gone.
    """
    data = {"corpus": corpus.hash, "tokenizer": corpus.tokenizer.hash} | ({"part": part} if part else {})
    stored = _read(folder, data)
    begun = any((folder / "checkpoints").glob("step-*"))
    if begun and stored is None:
        raise ValueError(
            f"{folder} has checkpoints but no {NAME}.npz for this data, and the weights it began with are gone: "
            "start it anew with resume=never"
        )
    if not begun:
        assert model is not None, "without checkpoints the model has to be asked"
        start, weights = model, fingerprint(model)
        if stored is None or stored[0]["weights"] != weights:
            values = corpus.cached_arrays(
                f"{weights} {part}".strip(), lambda: {name: ask(start, split) for name, split in rows.items()}
            )
            stored = {**data, "weights": weights}, values
            _write(folder, *stored)
    assert stored is not None
    for name, split in rows.items():
        split.reference = stored[1][name]


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights by name, of their precision, of that of products where autocast is on, and of what the
    model makes of a row as long as its context: weights do not tell a window of attention or a cap."""
    sums = hashlib.sha256()
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        sums.update(str(torch.get_autocast_dtype(device)).encode())
    for name, value in sorted(model.state_dict().items()):
        sums.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sums.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for answer in _answers(model):
        sums.update(answer.float().cpu().numpy().tobytes())
    return sums.hexdigest()[:32]


@torch.no_grad()
def _answers(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of a row of tokens as they come, and the logits after the last: of all they would be large."""
    was, device = model.training, next(model.parameters()).device
    model.eval()
    row = torch.arange(model.context, device=device)[None] % model.vocab_size
    try:
        hidden = model(Batch(row)).hidden
        return hidden, model.head(hidden[:, -1])
    finally:
        model.train(was)


def _read(folder: Path, asked: dict[str, str]) -> tuple[dict[str, str], Values] | None:
    """What the stage's folder holds for this data; None where that is nothing, or damaged."""
    try:
        told = json.loads((folder / f"{NAME}.json").read_text())
        with open(folder / f"{NAME}.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile):  # a file cut short
        return None
    return (told, values) if all(told.get(name) == value for name, value in asked.items()) else None


def _write(folder: Path, told: dict[str, Any], values: Values) -> None:
    """Each file whole or not at all, the one that says what the other holds last; ranks write the same."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{NAME}-{os.getpid()}"
    with open(part, "wb") as file:
        np.savez(file, **values)  # type: ignore[arg-type]
    os.replace(part, folder / f"{NAME}.npz")
    part.write_text(json.dumps(told))
    os.replace(part, folder / f"{NAME}.json")
