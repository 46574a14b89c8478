"""The order of samples is a function of (seed, step), uniform, and needs no list of all samples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from kleiber.data import order as module
from kleiber.data.order import Order, Permutation, permutation


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000, 4097, 100_003])
def test_a_permutation_has_every_number_once_and_is_computed_place_by_place(count: int) -> None:
    whole = Permutation(count, 5, 1)(np.arange(count))
    assert sorted(whole.tolist()) == list(range(count))
    some = np.random.default_rng(0).integers(0, count, 20)
    assert (Permutation(count, 5, 1)(some) == whole[some]).all()
    assert count < 7 or (whole != Permutation(count, 5, 2)(np.arange(count))).any()


@pytest.mark.slow
def test_permutations_are_uniform_in_places_and_pairs() -> None:
    """Chi-squared statistics of 120 keys: where a number stands, and how far the one behind it is from it."""
    drawn = np.stack([Permutation(12, key)(np.arange(12)) for key in range(120)])
    for values, cells in ((drawn[:, 0], 12), (drawn[:, 6], 12), ((drawn[:, 1] - drawn[:, 0]) % 12 - 1, 11)):
        expected = 120 / cells
        statistic = ((np.bincount(values, minlength=cells) - expected) ** 2).sum() / expected
        assert statistic < cells - 1 + 4 * np.sqrt(2 * cells)
    assert len({tuple(Permutation(3, key)(np.arange(3)).tolist()) for key in range(60)}) == 6


def test_a_hundred_billion_samples_need_no_memory() -> None:
    tracemalloc.start()
    ids, epochs = Order(100_000_000_000, seed=1).batch(12_345_678, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 and len(set(ids.tolist())) == 512 and set(epochs.tolist()) == {0}
    assert np.corrcoef(np.arange(512), ids)[0, 1] < 0.2


def test_batches_across_spans_and_epochs_are_those_of_the_whole_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [Order(50, seed=3).batch(step, 16) for step in range(10)]
    monkeypatch.setattr(module, "SPAN", 7)
    small = Order(50, seed=3)
    for step in (9, 0, 4, 3, 9):
        for part, expected in zip(small.batch(step, 16), whole[step], strict=True):
            assert (part == expected).all()


def test_every_epoch_holds_every_sample_once_in_a_new_order() -> None:
    order = Order(10, seed=1)
    ids = np.concatenate([order.batch(step, 4)[0] for step in range(5)])
    epochs = np.concatenate([order.batch(step, 4)[1] for step in range(5)])
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert list(ids[:10]) != list(ids[10:])
    assert list(epochs) == [0] * 10 + [1] * 10


def test_a_batch_depends_on_its_step_alone() -> None:
    order = Order(17, seed=5)
    forward = [order.batch(step, 6)[0] for step in range(20)]
    for step in (19, 0, 7, 7, 3):
        assert (Order(17, seed=5).batch(step, 6)[0] == forward[step]).all()
        assert (order.batch(step, 6)[0] == forward[step]).all()


@pytest.mark.slow
def test_seeds_give_different_orders_that_are_uniform() -> None:
    assert list(permutation(50, 0, 0)) != list(permutation(50, 1, 0))
    first = np.array([permutation(8, seed, 0)[0] for seed in range(4000)])
    counts = np.bincount(first, minlength=8)
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


def test_the_order_is_pinned() -> None:
    """A changed order would silently change every run that is resumed."""
    assert list(permutation(8, 42, 3)) == [0, 1, 5, 7, 3, 4, 2, 6]
    assert list(Order(1000, 42).batch(3, 8)[0]) == PINNED


PINNED = [117, 542, 251, 186, 807, 272, 475, 869]
