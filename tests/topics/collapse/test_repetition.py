"""Repetition and diversity: exact values on planted samples, and the BLEU of sacrebleu."""

import math
import random

import numpy as np
import pytest

from kleiber_topics.collapse.repetition import (
    distinct,
    ends_in_loop,
    jackknife,
    longest_repeat,
    ngrams,
    repetition,
    self_bleu,
)

LOOP = ["a", "b", "c", "a", "b", "c", "a", "b", "c", "a", "b", "c"]


def sentences(count: int, words: int = 40, seed: int = 0) -> list[list[str]]:
    chosen = random.Random(seed)
    return [[f"w{min(chosen.randrange(30), chosen.randrange(30))}" for _ in range(words)] for _ in range(count)]


def test_ngrams_are_in_order_and_none_where_a_sample_is_too_short():
    assert list(ngrams("abcd", 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(ngrams("ab", 3)) == []


def test_distinct_is_the_share_of_different_ngrams_of_all_samples_together():
    score = distinct([list("aab"), list("abc")], 1)
    assert score.value == 3 / 6 and score.n == 2
    assert distinct([list("aab"), list("abc")], 2).value == 3 / 4
    assert distinct([[*range(9)]] * 2, 4).value == 0.5, "equal samples halve it"
    assert distinct([["a"], []], 2) is None


def test_the_interval_of_distinct_is_the_jackknife_over_samples():
    samples = sentences(12)
    without = [distinct(samples[:i] + samples[i + 1 :], 2).value for i in range(12)]
    expected = jackknife(distinct(samples, 2).value, 12, without, highest=1.0)
    score = distinct(samples, 2)
    assert (score.value, score.lo, score.hi) == pytest.approx((expected.value, expected.lo, expected.hi), rel=1e-12)
    assert score.lo < score.value < score.hi


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 4.0, 2.0, 7.0])
    score = jackknife(values.mean(), 4, [(values.sum() - value) / 3 for value in values])
    assert (score.hi - score.lo) / 2 == pytest.approx(1.6448536 * values.std(ddof=1) / 2)
    assert jackknife(0.1, 4, [0.0, 0.4], highest=0.2).hi == 0.2


def test_repetition_within_a_sample():
    assert repetition(LOOP, 4) == 1 - 3 / 9
    assert repetition([*range(20)], 4) == 0
    assert repetition(["x"] * 13, 4) == 0.9
    assert repetition(["x"] * 3, 4) is None


def test_the_longest_repeat_equals_a_search_of_all_pairs():
    def slow(sample):
        spans = range(len(sample))
        return max(
            (
                k
                for k in spans
                for i in spans
                for j in range(i + 1, len(sample) - k + 1)
                if sample[i : i + k] == sample[j : j + k]
            ),
            default=0,
        )

    for sample in [*sentences(20, 18), list("abcabc"), LOOP, ["x"] * 7, [1, 2, 3], [1], []]:
        assert longest_repeat(sample) == slow(sample)
    assert longest_repeat(LOOP) == 9


def test_a_loop_is_a_short_period_up_to_the_end():
    rest = [*range(50, 70)]
    for period in range(1, 17):
        loop = rest + [*range(period)] * max(3, 8 // period + 1)
        assert ends_in_loop(loop) and not ends_in_loop([*loop, 99])
    assert not ends_in_loop(rest + [*range(17)] * 4), "the period is too long"
    assert not ends_in_loop([*rest, 1, 1, 1]), "three equal words are no loop"
    assert not ends_in_loop([*rest, *range(9), *range(9)]), "two periods are none"
    assert not ends_in_loop([])


def test_self_bleu_is_one_for_equal_samples_and_zero_for_those_with_nothing_in_common():
    assert self_bleu([LOOP] * 3) == pytest.approx([1.0] * 3)
    assert self_bleu([["a"] * 5, ["b"] * 5, []]) == [0.0] * 3


def test_self_bleu_equals_sacrebleu():
    bleu = pytest.importorskip("sacrebleu").BLEU(effective_order=True, tokenize="none")
    samples = [*sentences(12, 15), *sentences(6, 9, seed=1), ["w1"], ["w1", "w2", "new"], LOOP]
    texts = [" ".join(sample) for sample in samples]
    expected = [bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100 for i, text in enumerate(texts)]
    assert self_bleu(samples) == pytest.approx(expected, abs=1e-12)
    assert 0 < np.mean(expected) < 1


def test_shuffled_words_keep_unigrams_and_lose_longer_ngrams():
    chosen, samples = (
        random.Random(0),
        [f"{i} the cat sat on the mat and the dog sat on the rug".split() for i in range(8)],
    )
    shuffled = [chosen.sample(sample, len(sample)) for sample in samples]
    assert distinct(shuffled, 1).value == distinct(samples, 1).value
    assert distinct(shuffled, 4).value > 2 * distinct(samples, 4).value
    assert np.mean(self_bleu(shuffled)) < 0.7 * np.mean(self_bleu(samples))
    assert not math.isclose(np.mean(self_bleu(shuffled)), 0)
