"""Samples of a token file: windows of context + 1 ids, gathered by one vectorised read of the memory map.

Training windows are cut at another place in every epoch. Validation windows never move, never overlap, and hold every
target exactly once, so that a sum over them is a property of the text and not of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kleiber.data.token_files import TokenFile
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Samples, Tokenizer

GOLDEN = 0.6180339887498949


class TrainWindows(Samples):
    """Windows of context + 1 ids, `context` apart; in epoch e all are moved by frac(e * golden ratio) * context.

    num_tokens and num_bytes are of one epoch: the unique text. `samples` counts on through the epochs (index + epoch *
    number of windows), so that masks differ between epochs. Raises ValueError for a text shorter than one window.
    """

    def __init__(self, file: TokenFile, context: int, name: str = "the text") -> None:
        if len(file.ids) < context + 1:
            raise ValueError(
                f"{name} has {len(file.ids)} tokens to train on, fewer than one window of model.context={context} and "
                f"its target: give more text or set model.context={max(1, len(file.ids) - 1)} or less"
            )
        self.context, self.file = context, file
        self._windows = np.lib.stride_tricks.sliding_window_view(file.ids, context + 1)
        self._count = (len(file.ids) - 1) // context
        self.num_tokens = self._count * context
        self.num_bytes = round(file.num_bytes * self.num_tokens / (len(file.ids) - 1))

    def __len__(self) -> int:
        return self._count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        shift = int(epoch * GOLDEN % 1 * self.context)
        starts = np.minimum(index * self.context + shift, len(self._windows) - 1)
        tokens = torch.from_numpy(self._windows[starts].astype(np.int64))
        return Batch(tokens=tokens, samples=torch.from_numpy(index + epoch * self._count))


class ValidationWindows(HeldOut):
    """Consecutive windows: window i predicts targets i * context + 1 to (i + 1) * context; the last one may be short.

    A short window is padded with eos of weight 0 and `real` False. `num_tokens` targets stand for exactly `num_bytes`
    bytes of text. A tokenizer that is lossy is scaled to the bytes of the whole split.
    """

    def __init__(self, file: TokenFile, context: int, tokenizer: Tokenizer, targets: int | None = None) -> None:
        self.context, self.file = context, file
        self._tokenizer = tokenizer
        everything = max(0, len(file.ids) - 1)
        self.num_tokens = everything if targets is None else min(targets, everything)
        self._count = -(-self.num_tokens // context)
        self.num_bytes = file.num_bytes if self.num_tokens == everything else self._bytes()

    def _bytes(self) -> int:
        counted = int(self._tokenizer.token_bytes[self.file.ids[1 : self.num_tokens + 1]].sum())
        return round(counted * self.file.num_bytes / self.file.counted_bytes)

    def first(self, tokens: int | None) -> ValidationWindows:
        """The first `tokens` targets (all for None), in whole windows: the fixed set that every evaluation scores."""
        if tokens is None or tokens >= self.num_tokens:
            return self
        targets = max(1, tokens // self.context) * self.context
        return ValidationWindows(self.file, self.context, self._tokenizer, targets)

    def __len__(self) -> int:
        return self._count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        assert epoch == 0, "validation text is read once"
        places = index[:, None] * self.context + np.arange(self.context + 1)
        real = places <= self.num_tokens
        ids = self.file.ids[np.minimum(places, self.num_tokens)].astype(np.int64)
        batch = Batch(tokens=torch.from_numpy(ids), samples=torch.from_numpy(np.asarray(index, np.int64)))
        if not real.all():
            batch.real = torch.from_numpy(real)
            batch.weights = batch.real.float()
            batch.tokens = batch.tokens.where(batch.real, self._tokenizer.eos)
        return batch


class Joined(Samples):
    """Several sets of samples end to end, as one: sample i of the second follows the last of the first."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.num_tokens = sum(part.num_tokens for part in parts)
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        owner = np.searchsorted(self.starts, index, side="right") - 1
        owners = np.unique(owner)
        rows = [np.flatnonzero(owner == part) for part in owners]
        places = [(self.parts[p], index[r] - self.starts[p]) for p, r in zip(owners, rows, strict=True)]
        batch = interleave([part.gather(place, epoch) for part, place in places], rows)
        batch.samples = torch.from_numpy(np.asarray(index + epoch * len(self), np.int64))  # one numbering for all parts
        return batch


def interleave(parts: list[Batch], rows: list[Int[np.ndarray, "_"]]) -> Batch:
    """One batch out of several: row i of part p becomes row rows[p][i]. Shorter rows are padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.concatenate(rows), kind="stable")
    parts = _alike(parts)
    joined: dict[str, Any] = {}
    for field in fields(Batch):
        values = [getattr(part, field.name) for part in parts]
        missing = [value is None for value in values]
        assert all(missing) or not any(missing), f"some parts of a batch have no {field.name}"
        if all(missing):
            joined[field.name] = None
        elif isinstance(values[0], Batch):
            joined[field.name] = interleave(values, rows)
        else:
            joined[field.name] = torch.from_numpy(np.concatenate(values)[back])  # no thread pool
    return Batch(**joined)


def _alike(parts: list[Batch]) -> list[Batch]:
    """The parts in one width, with `real` and `weights` written out where only some have them."""
    widths = [part.tokens.shape[1] for part in parts]
    uneven = len(set(widths)) > 1
    names = [name for name in ("real", "weights") if any(getattr(part, name) is not None for part in parts)]
    if uneven and "real" not in names:
        names.append("real")
    if not names:
        return parts
    filled = [replace(part, **{name: _written(part, name) for name in names}) for part in parts]
    return [_widened(part, max(widths)) for part in filled] if uneven else filled


def _written(part: Batch, name: str) -> Tensor:
    given: Tensor | None = getattr(part, name)
    if given is not None:
        return given
    return torch.ones_like(part.tokens, dtype=torch.bool if name == "real" else torch.float32)


def _widened(part: Batch, width: int) -> Batch:
    time = part.tokens.shape[1]
    grown = {}
    for name in ("tokens", "real", "weights", "segments"):
        value = getattr(part, name)
        if value is not None:
            grown[name] = torch.from_numpy(np.pad(value.numpy(), ((0, 0), (0, width - time))))
    return replace(part, **grown)
