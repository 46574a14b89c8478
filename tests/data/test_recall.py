"""Associative recall: answers are in the row, rows are arithmetic, and a repeated data set repeats."""

import numpy as np
import pytest

from kleiber.data.recall import FIRST_VALUE, Recall


@pytest.mark.parametrize(("context", "pairs"), [(31, 8), (128, 20), (512, None)])
def test_every_value_to_recall_is_earlier_in_its_row_and_only_these_are_targets(context, pairs):
    corpus = Recall(pairs=pairs).prepare(context)
    batch = corpus.train.gather(np.arange(5))
    assert batch.tokens.shape == (5, context + 1) and batch.weights is not None
    for row, weights in zip(batch.tokens.numpy(), batch.weights.numpy(), strict=True):
        n = int(weights.sum())
        pairs_of_row = dict(row[: 2 * n].reshape(-1, 2).tolist())
        assert len(pairs_of_row) == n and all(k < FIRST_VALUE <= v for k, v in pairs_of_row.items())
        queries = np.flatnonzero(weights)
        assert all(pairs_of_row[row[t - 1]] == row[t] for t in queries)
        assert {int(row[t - 1]) for t in queries} == set(pairs_of_row)


def test_rows_depend_on_seed_and_number_and_are_never_repeated():
    corpus, other = Recall().prepare(64), Recall(seed=1).prepare(64)
    first, second = corpus.train.gather(np.array([3, 9])), corpus.train.gather(np.array([9, 3]))
    assert (first.tokens == second.tokens.flip(0)).all()
    assert (corpus.train.gather(np.array([3]), epoch=1).tokens != first.tokens[0]).any()
    assert (other.train.gather(np.array([3])).tokens != first.tokens[0]).any()
    held_out = corpus.validation["recall"].first(640).gather(np.arange(10))
    assert not {tuple(r) for r in held_out.tokens.tolist()} & {tuple(r) for r in first.tokens.tolist()}


@pytest.mark.parametrize("options", [{"pairs": 40, "keys": 8}, {"pairs": 40}])
def test_more_pairs_than_fit_a_row_are_refused(options):
    with pytest.raises(ValueError, match=r"data\."):
        Recall(**options).prepare(64)
