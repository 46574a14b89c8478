"""Nearest neighbors by squared Euclidean distance, exactly: with matrix products in torch, or with faiss.

Both only choose the neighbors. Their distances are computed from the differences of the vectors, since |a|^2 + |b|^2 -
2 ab of two equal vectors is not 0 in fp32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.records import Activity, activity

DISTANCES = 1 << 24  # in memory at once
ENTRIES = 1 << 16  # keys in one matrix product
GROUP = 64  # columns whose least value is computed before the smallest are chosen

Vectors = Float[Tensor, "_ dim"]
Choice = Int[Tensor, "queries neighbors"]


@dataclass(frozen=True)
class Neighbors:
    """The nearest entries of each query, the nearest one first.

    distances  squared
    entries    numbers of the keys
    """

    distances: Float[Tensor, "queries neighbors"]
    entries: Int[Tensor, "queries neighbors"]


def torch_nearest(queries: Vectors, keys: Vectors, count: int, device: torch.device | str, work: Activity) -> Choice:
    """Numbers of the `count` nearest keys of each query, in any order, from blocks of all distances.

    work  counts the distances
    """
    squares = torch.cat([part.square().sum(1) for part in keys.split(ENTRIES)])  # keys may be larger than the memory
    rows = max(1, DISTANCES // min(ENTRIES, len(keys)))
    scores = torch.empty(rows * min(ENTRIES, len(keys)), device=device)
    chosen = []
    for block in queries.split(rows):
        block = block.to(device)
        best = torch.full((len(block), count), torch.inf, device=device)
        places = torch.zeros(len(block), count, dtype=torch.int64, device=device)
        for start in range(0, len(keys), ENTRIES):
            part = keys[start : start + ENTRIES].to(device)
            # |query|^2 is the same for all keys, so it does not change the order
            out = scores[: len(block) * len(part)].view(len(block), len(part))
            torch.addmm(squares[start : start + ENTRIES].to(device), block, part.T, alpha=-2, out=out)
            values, at = smallest(out, min(count, len(part)))
            best, order = torch.cat([best, values], 1).topk(count, dim=1, largest=False, sorted=False)
            places = torch.cat([places, at + start], 1).gather(1, order)
        chosen.append(places.cpu())
        work.done += len(block) * len(keys)
    return torch.cat(chosen)


def smallest(values: Float[Tensor, "rows columns"], count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest values of each row in any order, and their columns.

    They stand in the `count` groups of columns with the smallest minima, so the other groups are not searched.
    """
    columns = values.shape[1]
    if columns % GROUP or columns // GROUP <= count:
        return values.topk(count, dim=1, largest=False, sorted=False)
    groups = values.view(len(values), -1, GROUP)
    chosen = groups.amin(2).topk(count, dim=1, largest=False, sorted=False).indices
    candidates = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    least, at = candidates.topk(count, dim=1, largest=False, sorted=False)
    return least, chosen.gather(1, at // GROUP) * GROUP + at % GROUP


def faiss_nearest(queries: Vectors, keys: Vectors, count: int, device: torch.device | str, work: Activity) -> Choice:
    """As `torch_nearest`, with an exact index of faiss on the CPU. Raises ValueError without the extra `retrieval`."""
    try:
        import faiss
    except ImportError:
        raise ValueError("evals.retrieval.search=faiss needs faiss: pip install 'kleiber[retrieval]'") from None
    index = faiss.IndexFlatL2(keys.shape[1])
    index.add(keys.numpy())
    chosen = torch.from_numpy(index.search(queries.numpy(), count)[1])
    work.done += len(queries) * len(keys)
    return chosen


SEARCH: dict[str, Callable[[Vectors, Vectors, int, torch.device | str, Activity], Choice]] = {
    "torch": torch_nearest,
    "faiss": faiss_nearest,
}


@torch.inference_mode()
def nearest(
    queries: Vectors,
    keys: Vectors,
    count: int,
    search: str = "torch",
    device: torch.device | str = "cpu",
    first: int = 0,
    work: Activity | None = None,
) -> Neighbors:
    """The `count` nearest keys of each query, all of fewer.

    search  "torch" or "faiss"
    device  of the matrix products of torch
    first   number of the first key
    work    counts the distances
    """
    counted = work or Activity("looking for nearest neighbors")
    chosen = SEARCH[search](queries, keys, min(count, len(keys)), device, counted)
    distances = torch.cat(
        [
            (query[:, None] - keys[places]).square().sum(2)
            for query, places in zip(queries.split(1024), chosen.split(1024), strict=True)
        ]
    )
    distances, order = distances.sort(dim=1)
    return Neighbors(distances, chosen.gather(1, order) + first)


def merge(ours: Neighbors, theirs: Neighbors, count: int) -> Neighbors:
    """The nearest ones of the neighbors of the same queries among two sets of keys."""
    distances, entries = torch.cat([ours.distances, theirs.distances], 1), torch.cat([ours.entries, theirs.entries], 1)
    distances, order = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
    return Neighbors(distances, entries.gather(1, order))


@dataclass(frozen=True)
class Search:
    """The neighbors among the first keys, and the seconds that all queries took together."""

    neighbors: Neighbors
    seconds: float


def nearest_by_size(
    queries: Vectors, keys: Vectors, ends: Sequence[int], count: int, search: str, device: torch.device | str
) -> list[Search]:
    """The neighbors among the first ends[i] keys, for each i; each key is compared once."""
    results: list[Search] = []
    start, begin = 0, time.perf_counter()
    with activity("looking for nearest neighbors", len(queries) * int(ends[-1]), "distances") as work:
        for end in ends:
            neighbors = nearest(queries, keys[start:end], count, search, device, start, work)
            neighbors = merge(results[-1].neighbors, neighbors, count) if results else neighbors
            results.append(Search(neighbors, time.perf_counter() - begin))
            start = end
    return results
