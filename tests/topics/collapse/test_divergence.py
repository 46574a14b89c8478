"""Divergences: zero and one for equal texts, exact on small tables, and worse the farther a text is away."""

import math
import random

import numpy as np
import pytest

from kleiber_topics.collapse.divergence import (
    frontier_area,
    kmeans,
    mauve,
    ngram_features,
    principal_components,
    unigram_kl,
)


def texts(
    count: int, seed: int, words: str = "the a cat dog sat ran on under mat tree slowly and then home"
) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choice(words.split()) for _ in range(20)) for _ in range(count)]


def test_unigram_kl_is_that_of_smoothed_frequencies():
    score = unigram_kl([["a", "a"], ["b", "a"]], [["a", "b", "c", "a"]])
    q = np.array([2.5, 1.5, 1.5]) / 5.5
    assert score.value == pytest.approx(0.75 * math.log(0.75 / q[0]) + 0.25 * math.log(0.25 / q[1]))
    assert score.lo < score.value < score.hi and score.n == 2
    assert unigram_kl([[], []], [["a"]]) is None
    corpus = [["a", "b"] * 500]
    assert unigram_kl(corpus, corpus).value < 1e-12 < 1 < unigram_kl([["c"] * 9] * 2, corpus).value


def test_the_frontier_of_equal_histograms_has_area_one_and_it_is_symmetric():
    p, q = np.array([5, 3, 2]), np.array([1, 0, 9])
    assert frontier_area(p, p) == pytest.approx(1)
    assert frontier_area(p, q) == pytest.approx(frontier_area(q, p))
    assert frontier_area(np.array([1000, 0]), np.array([0, 1000])) < 0.02
    nearer = [frontier_area(p, np.array(other)) for other in ([5, 3, 2], [4, 4, 2], [2, 4, 4], [0, 2, 8])]
    assert nearer == sorted(nearer, reverse=True)


def test_features_are_frequencies_of_byte_ngrams():
    rows = ngram_features(["abab", "", "é"])
    assert rows.shape == (3, 1536)
    np.testing.assert_allclose((rows**2).reshape(3, 3, 512).sum(2), [[1, 1, 1], [0, 0, 0], [1, 1, 0]])
    assert sorted((rows[0, 512:1024] ** 2)[rows[0, 512:1024] > 0]) == pytest.approx([1 / 3, 2 / 3])


def test_principal_components_keep_distances_and_drop_noise():
    random_numbers = np.random.default_rng(0)
    planted = random_numbers.normal(size=(40, 2)) @ random_numbers.normal(size=(2, 30))
    points = principal_components(planted)
    assert points.shape[1] <= 2
    full = principal_components(np.tile([[1.0, 0.0], [0.0, 1.0]], (5, 1)))
    assert np.linalg.norm(full[0] - full[1]) == pytest.approx(math.sqrt(2))
    assert principal_components(np.ones((4, 3))).shape == (4, 1)


def test_kmeans_finds_planted_clusters_and_survives_equal_points():
    centers = np.array([[0.0, 0], [9, 0], [0, 9]])
    noise = np.random.default_rng(0).normal(size=(60, 2))
    labels = kmeans(np.repeat(centers, 20, 0) + noise, 3)
    assert len(np.unique(labels)) == 3 and all(len(np.unique(part)) == 1 for part in labels.reshape(3, 20))
    assert set(kmeans(np.ones((6, 2)), 3)) <= {0, 1, 2}


@pytest.mark.slow
def test_mauve_is_one_for_the_same_texts_near_it_for_like_ones_and_near_zero_for_others():
    human, other = texts(60, 0), texts(60, 1)
    same, like = mauve(human, human), mauve(human, other)
    shuffled = ["".join(random.Random(i).sample(text, len(text))) for i, text in enumerate(human)]
    loops = mauve(["the the the the"] * 60, other)
    assert same.value == pytest.approx(1) and like.value > 0.85
    assert mauve(shuffled, other).value < 0.1 and loops.value < 0.1
    assert like.lo < like.value < like.hi <= 1 and like.n == 60
    assert mauve(human, other) == like, "the same seed clusters in the same way"


def test_the_interval_of_mauve_is_the_jackknife_with_the_clusters_kept():
    human, other = texts(30, 0), texts(30, 5)
    points = principal_components(ngram_features([*human, *other]))
    labels = kmeans(points, 3)
    p, q = np.bincount(labels[:30], minlength=3), np.bincount(labels[30:], minlength=3)
    variance = 0.0
    for part in (0, 1):
        areas = []
        for label in labels[30 * part : 30 * part + 30]:
            fewer = [p.copy(), q.copy()]
            fewer[part][label] -= 1
            areas.append(frontier_area(*fewer))
        variance += 29 / 30 * np.sum((np.array(areas) - np.mean(areas)) ** 2)
    score = mauve(human, other)
    assert score.value - score.lo == pytest.approx(1.6448536 * math.sqrt(variance))
