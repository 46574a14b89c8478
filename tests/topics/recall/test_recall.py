"""Associative recall: answers are in the row, rows are arithmetic, and a repeated data set repeats."""

import numpy as np
import pytest

from kleiber.config.check import check_arguments
from kleiber.config.errors import ConfigError
from kleiber.config.targets import signature
from kleiber.data.mixture import SpreadSamples
from kleiber.data.mixture_corpus import Repeated
from kleiber_topics.recall.recall import FIRST_FILLER, FIRST_VALUE, Recall


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


def haystack(context: int = 64, **options: object):
    return Recall(**{"distractors": 3, "lengths": [16, 33, 48], **options}).prepare(context)


def test_a_haystack_hides_the_pairs_and_the_rest_of_the_row_asks_for_some_of_them():
    batch, counts, repeated = haystack().train.gather(np.arange(40)), set(), []
    for row, weights in zip(batch.tokens.numpy(), batch.weights.numpy(), strict=True):
        first = int(np.flatnonzero(weights)[0]) - 1
        counts.add(first)
        shown = row[:first].reshape(-1, 2)
        pairs = dict(shown[shown[:, 0] < FIRST_VALUE].tolist())
        assert len(pairs) == 4 and (shown[shown[:, 0] >= FIRST_FILLER] >= FIRST_FILLER).all()
        assert len(shown) == 4 + (shown[:, 0] >= FIRST_FILLER).sum()
        asked = row[first : first + 2 * ((65 - first) // 2)].reshape(-1, 2)
        assert all(pairs[key] == value for key, value in asked.tolist())
        repeated.append((asked[1:, 0] == asked[:-1, 0]).mean())
        assert weights.sum() == len(asked) and (np.flatnonzero(weights) == first + 1 + 2 * np.arange(len(asked))).all()
    assert counts == {16, 32, 48} and 0.15 < np.mean(repeated) < 0.35, "questions are independent: 1/4 repeat"


@pytest.mark.parametrize(("depth", "slot"), [(0.0, 0), (0.5, 8), (1.0, 15)])
def test_a_needle_is_at_its_depth_and_its_value_is_the_only_target(depth, slot):
    batch = haystack().validation["recall"].needles(32, depth, np.arange(30))
    tokens = batch.tokens.numpy()
    assert tokens.shape == (30, 34) and batch.weights.sum(0).tolist() == [0] * 33 + [30]
    assert (tokens[:, 2 * slot : 2 * slot + 2] == tokens[:, 32:]).all()
    assert ((tokens[:, :32:2] < FIRST_VALUE).sum(1) == 4).all()
    assert len({tuple(row) for row in tokens.tolist()}) == 30


def test_needles_of_one_number_have_the_same_pair_at_every_depth_and_are_no_training_rows():
    corpus = haystack()
    near, far = (corpus.validation["recall"].needles(16, depth, np.arange(9)).tokens for depth in (1.0, 0.0))
    assert (near[:, 16:] == far[:, 16:]).all() and (near[:, :16] != far[:, :16]).any(1).all()
    starts = {tuple(row[:16]) for row in corpus.train.gather(np.arange(300)).tokens.tolist()}
    assert not starts & {tuple(row[:16]) for row in near.tolist()}


def test_haystacks_have_a_hash_of_their_own_and_default_lengths():
    assert Recall().prepare(64).hash != haystack().hash != haystack(lengths=[16]).hash
    assert Recall(distractors=3).prepare(64).train.lengths == [8, 16, 32, 48]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [8]}, r"data\.lengths=\[8\] are of haystacks: set data\.distractors"),
        ({"pairs": 4, "distractors": 3}, r"data\.pairs=4 is for rows without a haystack"),
        ({"distractors": 8, "keys": 8}, r"data\.distractors=8 must be < data\.keys=8"),
        ({"distractors": 8, "lengths": [16, 32]}, r"data\.lengths=\[16, 32\] must be >= 18"),
        ({"distractors": 3, "lengths": [64]}, r"data\.lengths=\[64\] must be >= 8.*<= 62"),
    ],
)
def test_haystacks_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recall(**options).prepare(64)


def test_rows_without_a_haystack_have_no_needle():
    with pytest.raises(ValueError, match=r"set data\.distractors"):
        Recall().prepare(64).validation["recall"].needles(16, 0.5, np.arange(2))


def test_a_row_is_the_same_alone_and_in_a_batch():
    train = haystack().train
    together = train.gather(np.arange(6)).tokens
    assert all((train.gather(np.array([i])).tokens[0] == together[i]).all() for i in range(6))


@pytest.mark.parametrize("distractors", [None, 3])
def test_keys_may_have_values_of_their_own(distractors):
    options = {"distractors": distractors, "keys": 16, "values": 8}
    corpus, shared = Recall(**options, shared_values=False).prepare(64), Recall(**options).prepare(64)
    batch = corpus.train.gather(np.arange(30))
    questions = [
        (int(row[t - 1]), int(row[t]))
        for row, w in zip(batch.tokens, batch.weights, strict=True)
        for t in np.flatnonzero(w)
    ]
    assert all((value - FIRST_VALUE) // 8 == key for key, value in questions)
    assert len({value for _, value in questions}) > 64 and corpus.hash != shared.hash


def test_values_of_their_own_must_fit_the_vocabulary():
    with pytest.raises(ValueError, match=r"data\.keys=32 x data\.values=8 must be <= 128"):
        Recall(keys=32, values=8, shared_values=False).prepare(64)


@pytest.mark.parametrize(("key", "value"), [("keys", 1), ("values", 200)])
def test_numbers_of_keys_and_values_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"data.{key}={value}"):
        check_arguments("data", signature("kleiber_topics.recall.Recall"), {key: value})


def test_a_repeated_subset_is_spread_over_the_data_set_and_validation_is_whole():
    whole = Recall(rows=100)
    corpus = Repeated(whole, unique=10 * 64).prepare(64)
    assert len(corpus.train) == 10 and corpus.train.num_tokens == 640
    assert corpus.hash != whole.prepare(64).hash
    assert len(corpus.validation["recall"]) == len(whole.prepare(64).validation["recall"])
    first, again = (corpus.train.gather(np.array([7]), epoch) for epoch in (0, 3))
    assert (first.tokens == whole.prepare(64).train.gather(np.array([70])).tokens).all()
    assert isinstance(corpus.train, SpreadSamples) and Repeated(whole).prepare(64).hash == whole.prepare(64).hash
    assert (again.tokens == first.tokens).all(), "every epoch has the same windows"
    with pytest.raises(ValueError, match=r"data.unique=1M"):
        Repeated(whole, unique="1M").prepare(64)


@pytest.mark.parametrize("options", [{"pairs": 3}, {"distractors": 2, "lengths": [12]}])
def test_the_causes_of_recall_are_the_earlier_key_and_value(options):
    rows = Recall(**options).prepare(31).validation["recall"]
    index = np.arange(6)
    tokens, planted = rows.gather(index).tokens.numpy(), rows.planted(index)
    for row, target, causes in zip(tokens, planted.targets, planted.causes, strict=True):
        assert causes.sum() >= 2 and not causes[target - 1 :].any()
        assert set(row[causes]) == {row[target - 1], row[target]}
