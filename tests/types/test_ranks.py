"""Sums over ranks in one collective, and one rank where no process group exists."""

import pytest
import torch
import torch.distributed as dist

from kleiber.types.ranks import all_reduce_together, rank, world_size


@pytest.fixture
def two_equal_ranks(monkeypatch):
    """Two ranks with the same tensors; yields the number of collectives."""
    calls: list[object] = []

    def all_reduce(flat, op):
        calls.append(op)
        if op == dist.ReduceOp.SUM:
            flat.mul_(2)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return calls


def test_a_process_without_a_group_is_the_only_rank():
    tensors = [torch.arange(3), torch.ones(())]
    assert (rank(), world_size()) == (0, 1)
    assert all(a is b for a, b in zip(all_reduce_together(tensors), tensors, strict=True))


def test_tensors_are_combined_in_one_collective_and_keep_their_shapes(two_equal_ranks):
    matrix, number = torch.arange(6.0).view(2, 3), torch.tensor(5.0)
    total, count = all_reduce_together([matrix, number])
    assert (rank(), world_size()) == (1, 2) and len(two_equal_ranks) == 1
    assert torch.equal(total, 2 * matrix) and count.item() == 10 and number.item() == 5
    (largest,) = all_reduce_together([matrix], dist.ReduceOp.MAX)
    assert torch.equal(largest, matrix) and two_equal_ranks[-1] == dist.ReduceOp.MAX


def test_no_tensors_need_no_collective(two_equal_ranks):
    assert all_reduce_together([]) == [] and two_equal_ranks == []
