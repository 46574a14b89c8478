"""A frozen reference: the model as it was before training.

Its values for the data are computed once. They are stored in the stage's folder with the hashes of the data and of the
weights, where a resumed stage reads them, and in the cache of the data under the same hashes, where other runs from the
same weights find them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kleiber.data.preference import AnswerCorpus, PairRows
from kleiber.nn.precision import autocast_dtype
from kleiber.nn.sharding import full_parameters
from kleiber.records.arrays import REFERENCE, read_arrays
from kleiber.records.files import read_json, replaced
from kleiber.records.regular_files import DamagedFile, create, make_folder
from kleiber.types.batch import Batch
from kleiber.types.model import Model, device_of, evaluation_mode

Values = dict[str, np.ndarray]  # by split


def set_reference(
    model: Model | None,
    corpus: AnswerCorpus,
    folder: Path,
    rows: Mapping[str, PairRows],
    compute: Callable[[Model, PairRows], np.ndarray],
    part: str = "",
) -> None:
    """Sets `reference` of the rows of each split to the values of the model that the stage began with.

    The values come from the stage's folder, from the cache of the corpus, or from `compute`. Once the stage has
    checkpoints, only its folder counts. Before that the values are computed again if the weights have changed, as
    those of a start point that was trained again.

    model   at the beginning of the stage; may be None where the stage has checkpoints
    folder  of the stage
    rows    the samples by split
    part    name of the part of the corpus that `rows` are, where they are not all of it

    Raises ValueError for a stage with checkpoints whose folder has no values.
    """
    data = {"corpus": corpus.hash, "tokenizer": corpus.tokenizer.hash} | ({"part": part} if part else {})
    stored = _read(folder, data)
    has_checkpoints = any((folder / "checkpoints").glob("step-*"))
    if has_checkpoints and stored is None:
        raise ValueError(
            f"{folder} has checkpoints but no {REFERENCE}.npz for this data, and it cannot be computed again without "
            "the weights of the stage's beginning: start the run again with resume=never"
        )
    if not has_checkpoints:
        assert model is not None, "a stage without checkpoints has its model"
        with full_parameters(model):
            start, weights = model, fingerprint(model)
            if stored is None or stored[0]["weights"] != weights:
                values = corpus.cached_arrays(
                    f"{weights} {part}".strip(), lambda: {name: compute(start, split) for name, split in rows.items()}
                )
                stored = {**data, "weights": weights}, values
                _write(folder, *stored)
    assert stored is not None
    for name, split in rows.items():
        split.reference = stored[1][name]


def start_weights(model: Model, folder: Path) -> dict[str, Tensor]:
    """Returns the weights of the model that a stage began with, by name: those in its folder if it has checkpoints.

    Else they are those of `model`, and are written to the folder.

    folder  of the stage

    Raises ValueError for a stage with checkpoints whose folder has no weights.
    """
    if not any((folder / "checkpoints").glob("step-*")):
        values = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
        _write(folder, {}, values)
        return model.state_dict()
    stored = _read(folder, {})
    if stored is None:
        raise ValueError(
            f"{folder} has checkpoints but no {REFERENCE}.npz with the weights of its beginning, which objective=grpo "
            "compares with: start the run again with resume=never"
        )
    return {name: torch.from_numpy(value) for name, value in stored[1].items()}


def fingerprint(model: Model) -> str:
    """A hash of the model's weights, of its precision, and of its outputs for an example.

    The outputs are part of it because settings such as an attention window or a logit cap change no weight.
    """
    digest = hashlib.sha256()
    dtype = autocast_dtype(device_of(model))
    if dtype is not None:
        digest.update(str(dtype).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for output in _example_outputs(model):
        digest.update(output.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _example_outputs(model: Model) -> tuple[Tensor, Tensor]:
    """Hidden states of a row of the token ids 0, 1, ... as long as the context, and the logits after its last token."""
    row = torch.arange(model.context, device=device_of(model))[None] % model.vocab_size
    with evaluation_mode(model):
        hidden = model(Batch(row)).hidden
        return hidden, model.head(hidden[:, -1])


def _read(folder: Path, data: Mapping[str, str]) -> tuple[dict[str, str], Values] | None:
    """Description and values in the stage's folder; None where there are none of this data, or damaged ones."""
    try:
        description = read_json(folder / f"{REFERENCE}.json")
        values = read_arrays(folder / f"{REFERENCE}.npz")
    except (OSError, DamagedFile):  # a truncated file
        return None
    return (description, values) if all(description.get(name) == value for name, value in data.items()) else None


def _write(folder: Path, description: Mapping[str, str], values: Values) -> None:
    """Writes each file atomically, the description last. Every rank writes the same files."""
    place = folder.absolute()
    make_folder(place.parents[1], *place.parts[-2:])
    with replaced(folder / f"{REFERENCE}.npz", shared=True) as part, create(part) as file:
        np.savez(file, **values)  # type: ignore[arg-type]
    with replaced(folder / f"{REFERENCE}.json", shared=True) as part, create(part) as file:
        file.write(json.dumps(description).encode())
