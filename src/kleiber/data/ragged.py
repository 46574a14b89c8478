"""Rows of unequal length, end to end in one flat file that is mapped into memory. It knows no splits and no tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer


@dataclass(frozen=True)
class Ragged:
    """Row i is flat[starts[i] : starts[i + 1]]."""

    flat: Integer[np.ndarray, "_"]
    starts: Int[np.ndarray, "_"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> Integer[np.ndarray, "_"]:
        return self.flat[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, "_"]:
        return np.diff(self.starts)


def write(path: Path, rows: Iterable[Integer[np.ndarray, "_"]], kind: np.dtype) -> None:
    """Writes `path`.bin and `path`.starts.npy."""
    lengths = [0]
    with open(path.with_suffix(".bin"), "wb") as file:
        for row in rows:
            file.write(np.asarray(row).astype(kind).tobytes())
            lengths.append(len(row))
    np.save(path.with_suffix(".starts.npy"), np.cumsum(lengths, dtype=np.int64))


def read(path: Path, kind: np.dtype) -> Ragged:
    starts = np.load(path.with_suffix(".starts.npy"))
    # An empty file has no map.
    flat = np.memmap(path.with_suffix(".bin"), dtype=kind, mode="r") if starts[-1] else np.empty(0, kind)
    return Ragged(flat, starts)
