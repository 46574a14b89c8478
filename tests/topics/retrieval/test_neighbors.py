"""Nearest neighbors equal a slow loop, in blocks of any size, and faiss finds the same."""

import pytest
import torch

from kleiber_topics.retrieval import neighbors
from kleiber_topics.retrieval.neighbors import GROUP, Neighbors, merge, nearest, nearest_by_size, smallest


def vectors(rows: int, seed: int, dim: int = 8) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def by_loop(queries: torch.Tensor, keys: torch.Tensor, count: int) -> Neighbors:
    distances = torch.tensor(
        [[sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) for k in keys.tolist()] for q in queries.tolist()]
    )
    ordered, places = distances.sort(1)
    return Neighbors(ordered[:, :count], places[:, :count])


def same(ours: Neighbors, theirs: Neighbors) -> bool:
    return torch.equal(ours.entries, theirs.entries) and torch.allclose(ours.distances, theirs.distances, atol=1e-5)


def test_distances_and_entries_equal_a_slow_loop():
    queries, keys = vectors(7, 0), vectors(50, 1)
    assert same(nearest(queries, keys, 5), by_loop(queries, keys, 5))


def test_a_vector_is_at_distance_zero_of_itself_though_its_entries_are_large():
    keys = 1000 + vectors(20, 0)
    found = nearest(keys, keys, 1)
    assert found.entries.squeeze(1).tolist() == list(range(20)) and found.distances.abs().max() == 0


def test_blocks_change_nothing(monkeypatch):
    queries, keys = vectors(9, 2), vectors(61, 3)
    whole = nearest(queries, keys, 10)
    monkeypatch.setattr(neighbors, "ENTRIES", 7)
    monkeypatch.setattr(neighbors, "DISTANCES", 21)
    assert same(nearest(queries, keys, 10), whole)


def test_a_store_with_fewer_entries_than_neighbors_gives_all():
    assert nearest(vectors(2, 0), vectors(3, 1), 32).entries.shape == (2, 3)


def test_sizes_are_searched_as_stores_of_their_own():
    queries, keys = vectors(6, 4), vectors(40, 5)
    found = nearest_by_size(queries, keys, [3, 17, 40], 8, "torch", "cpu")
    assert all(
        same(part.neighbors, by_loop(queries, keys[:end], 8)) for part, end in zip(found, [3, 17, 40], strict=True)
    )
    assert 0 < found[0].seconds <= found[1].seconds <= found[2].seconds


def test_merging_keeps_the_nearest_of_two_sets():
    queries, keys = vectors(5, 6), vectors(30, 7)
    halves = nearest(queries, keys[:15], 4), nearest(queries, keys[15:], 4, first=15)
    assert same(merge(*halves, 4), nearest(queries, keys, 4))


@pytest.mark.slow  # faiss takes a second to import
def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    queries, keys = vectors(11, 8), vectors(90, 9)
    assert same(nearest(queries, keys, 6, search="faiss"), nearest(queries, keys, 6))


@pytest.mark.parametrize("columns", [3 * GROUP, 8 * GROUP, 8 * GROUP + 5])
def test_the_smallest_of_groups_are_the_smallest_of_all(columns):
    values = vectors(6, 10, columns)
    least, places = smallest(values, 4)
    expected = values.sort(1)
    assert torch.equal(least.sort(1).values, expected.values[:, :4])
    assert torch.equal(places.sort(1).values, expected.indices[:, :4].sort(1).values)
