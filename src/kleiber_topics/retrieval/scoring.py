"""Scores rows of token ids: log-probabilities of some of their tokens, and the hidden states that predict them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.evals import cut_by_length, target_scores
from kleiber.models import Block, Transformer
from kleiber.records import activity, format_bytes
from kleiber.types import Batch, Model, device_of

KEYS = ("hidden", "ffn")


@dataclass(frozen=True)
class ScoredRow:
    """A row of token ids.

    scored  which of them are targets; not the first one
    item    number of the sample or of the row of a table that the targets belong to
    """

    ids: Int[np.ndarray, "_"]
    scored: Bool[np.ndarray, "_"]
    item: int


@dataclass(frozen=True)
class Targets:
    """The targets of rows, row by row.

    ids        their token ids
    log_probs  log p(target) under the model, in nats
    greedy     whether the target is the most probable token
    items      number of the item of each
    hidden     hidden states that predict them, after the last layer
    keys       vectors by which they are looked for in a datastore; `hidden`, or inputs of the last feed-forward layer
    """

    ids: Int[Tensor, "tokens"]
    log_probs: Float[Tensor, "tokens"]
    greedy: Bool[Tensor, "tokens"]
    items: Int[np.ndarray, "tokens"]
    hidden: Float[Tensor, "tokens dim"]
    keys: Float[Tensor, "tokens dim"]


def check_key(model: Model, key: str) -> None:
    """Raises ValueError for a model whose layers have no feed-forward part that kleiber knows."""
    if key == "ffn" and not isinstance(model, Transformer):
        raise ValueError(
            "evals.retrieval.key=ffn needs model=gpt, model=moe or a Llama-like Hugging Face model: set "
            "evals.retrieval.key=hidden"
        )


@contextmanager
def read_keys(model: Model, key: str) -> Iterator[list[Tensor]]:
    """Collects the input of the last layer's feed-forward part at every forward pass, for key=ffn."""
    inputs: list[Tensor] = []
    if key != "ffn":
        yield inputs
        return
    block = model.blocks[-1]
    assert isinstance(block, Block)

    def keep(module: nn.Module, arguments: tuple[Tensor, Batch]) -> None:
        inputs.append(arguments[0])

    with block.mlp.register_forward_pre_hook(keep):
        yield inputs


def passes(lengths: Sequence[int], tokens: int) -> Iterator[Int[np.ndarray, "_"]]:
    """Numbers of the rows of each forward pass of at most `tokens` tokens, rows of like length together."""
    order = np.argsort([-length for length in lengths], kind="stable")
    for start, end in cut_by_length([lengths[i] for i in order], tokens):
        yield order[start:end]


def right_padded(rows: Sequence[Int[np.ndarray, "_"]], device: torch.device | str) -> Batch:
    """A batch of rows of unequal length, with padding behind them."""
    longest = max(map(len, rows))
    ids = np.stack([np.pad(row, (0, longest - len(row))) for row in rows]).astype(np.int64)
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(longest) < lengths[:, None]
    return Batch(torch.from_numpy(ids), real=None if bool(real.all()) else real).to(device)


def zero_vectors(count: int, width: int, memory: int | None) -> Float[Tensor, "count width"]:
    """Zeros in fp32: in memory, or mapped from a temporary file where they take more than `memory` bytes.

    The file has no name, so nothing is left of it when the process ends in whatever way. Raises ValueError where the
    disk has no room for it.
    """
    needed = 4 * count * width
    if memory is None or needed <= memory:
        return torch.zeros(count, width)
    folder = tempfile.gettempdir()
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"evals.retrieval.sizes: the datastore takes {format_bytes(needed)} and {folder} has {format_bytes(free)} "
            "free: use fewer tokens, or set TMPDIR to a folder with more room"
        )
    with tempfile.TemporaryFile() as file:  # the mapping lasts longer than this handle
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(count, width)))


@torch.compiler.set_stance("force_eager")
@torch.inference_mode()
def score_rows(
    model: Model, rows: Sequence[ScoredRow], tokens: int, key: str, label: str, memory: int | None = None
) -> Targets:
    """Scores the targets of rows, which may have model.context + 1 tokens. The result is on the CPU.

    tokens  most tokens of a forward pass
    key     "hidden" or "ffn": which vectors are keys
    label   what the progress line shows
    memory  bytes up to which hidden states, and keys, are in memory; more are mapped from a file; None: all are
    """
    device = device_of(model)
    counts = [int(row.scored.sum()) for row in rows]
    starts = np.cumsum([0, *counts]).tolist()
    total = starts[-1]
    ids, log_probs = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.float64)
    greedy = torch.zeros(total, dtype=torch.bool)
    hidden = zero_vectors(total, model.width, memory)
    keys = zero_vectors(total, model.width if key == "ffn" else 0, memory)
    with activity(label, total, "tokens") as work, read_keys(model, key) as inputs:
        for chosen in passes([len(row.ids) - 1 for row in rows], tokens):
            part = [rows[i] for i in chosen]
            states = model(right_padded([row.ids[:-1] for row in part], device)).hidden
            at_row = np.repeat(np.arange(len(part)), [counts[i] for i in chosen])
            at_time = np.concatenate([np.flatnonzero(row.scored) - 1 for row in part])
            place = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chosen.tolist()])
            targets = torch.from_numpy(np.concatenate([row.ids[row.scored] for row in part]).astype(np.int64))
            predicting = states[at_row, at_time]
            scores, best = target_scores(predicting, model.head, targets.to(device))
            ids[place], log_probs[place], greedy[place] = targets, scores.double().cpu(), best.cpu()
            hidden[place] = predicting.float().cpu()
            if key == "ffn":
                keys[place] = inputs.pop()[at_row, at_time].float().cpu()
            work.done += len(place)
    items = np.repeat([row.item for row in rows], counts).astype(np.int64)
    return Targets(ids, log_probs, greedy, items, hidden, keys if key == "ffn" else hidden)


@torch.compiler.set_stance("force_eager")
@torch.inference_mode()
def mean_states(
    model: Model, texts: Sequence[Int[np.ndarray, "_"]], tokens: int, label: str
) -> Float[Tensor, "texts dim"]:
    """The mean hidden state of each text after the last layer, scaled to length 1; on the CPU."""
    device = device_of(model)
    means = torch.zeros(len(texts), model.width)
    with activity(label, len(texts), "texts") as work:
        for chosen in passes([len(text) for text in texts], tokens):
            batch = right_padded([texts[i] for i in chosen], device)
            states = model(batch).hidden.float()
            weights = torch.ones_like(states[:, :, :1]) if batch.real is None else batch.real[:, :, None].float()
            means[torch.from_numpy(chosen)] = ((states * weights).sum(1) / weights.sum(1)).cpu()
            work.done += len(chosen)
    return nn.functional.normalize(means, dim=1)
