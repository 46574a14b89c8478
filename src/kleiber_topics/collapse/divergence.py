"""Distances between two sets of texts: KL divergence of their unigrams, and the area under a divergence frontier.

The area is MAUVE (Pillutla et al. 2021, arXiv:2102.01454) with other features: frequencies of byte n-grams in place of
the hidden states of a large language model. They need no download and are the same for every model and tokenizer, so
the values of two models can be compared with each other, though not with published ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from kleiber.data import splitmix64
from kleiber.types import Score
from kleiber_topics.collapse.repetition import Units, jackknife

SMOOTHING = 0.5  # added to counts, after Krichevsky and Trofimov (1981)
BUCKETS = 512  # of hashed n-grams, for each n
LONGEST = 3  # n of the longest byte n-grams
VARIANCE = 0.9  # share that the principal components of the features keep, as in MAUVE
PER_CLUSTER = 10  # samples of each set per cluster, as in MAUVE
STARTS, ITERATIONS = 5, 100  # of k-means
SCALE, POINTS = 5.0, 25  # c and the number of mixtures of the frontier, as in MAUVE

Points = Float[np.ndarray, "rows dim"]
Labels = Int[np.ndarray, "rows"]


def unigram_kl(samples: Sequence[Units], corpus: Sequence[Units]) -> Score | None:
    """KL divergence of the unigrams of samples from those of a corpus, in nats per unit; None for empty samples.

    Counts of the corpus are smoothed over all units that occur in either.
    """
    counts = [Counter(sample) for sample in samples]
    reference = Counter(unit for text in corpus for unit in text)
    number = {unit: i for i, unit in enumerate(dict.fromkeys([*reference, *(u for c in counts for u in c)]))}
    table = np.zeros((len(samples), len(number)))
    for i, sample in enumerate(counts):
        for unit, count in sample.items():
            table[i, number[unit]] = count
    total = table.sum(0)
    if total.sum() == 0:
        return None
    smoothed = np.array([reference[unit] for unit in number]) + SMOOTHING
    log_q = np.log(smoothed / smoothed.sum())

    def divergence(of: np.ndarray) -> float:
        p = of[of > 0] / of.sum()
        return float((p * (np.log(p) - log_q[of > 0])).sum())

    without = [divergence(total - row) for row in table if (total - row).sum() > 0]
    return jackknife(divergence(total), len(samples), without)


def mauve(texts: Sequence[str], reference: Sequence[str], seed: int = 0) -> Score:
    """The area under the divergence frontier of two sets of texts: 1 where they are the same, towards 0 where they
    have nothing in common (Pillutla et al. 2021, arXiv:2102.01454, equation 3).

    The texts of both sets are clustered by their n-grams, n / 10 clusters for n texts a set. Compare the value with
    that of two sets of human texts of the same n: it is below 1 for a finite n.
    """
    points = principal_components(ngram_features([*texts, *reference]))
    k = max(2, min(len(texts), len(reference)) // PER_CLUSTER)
    labels = kmeans(points, k, seed)
    p, q = (np.bincount(part, minlength=k) for part in (labels[: len(texts)], labels[len(texts) :]))
    # Without a sample of a cluster: the same for all samples of the cluster.
    fewer_p = [frontier_area(p - np.eye(k, dtype=np.int64)[c], q) for c in range(k) for _ in range(p[c])]
    fewer_q = [frontier_area(p, q - np.eye(k, dtype=np.int64)[c]) for c in range(k) for _ in range(q[c])]
    return jackknife(frontier_area(p, q), len(texts), fewer_p, fewer_q, highest=1.0)


def frontier_area(p: Int[np.ndarray, "bands"], q: Int[np.ndarray, "bands"]) -> float:
    """The area under (exp(-c KL(q|r)), exp(-c KL(p|r))) over the mixtures r of two histograms of counts.

    Counts are smoothed (Pillutla et al. 2022, arXiv:2212.14578), without which few samples look farther apart than they
    are.
    """
    p, q = ((counts + SMOOTHING) / (counts + SMOOTHING).sum() for counts in (p, q))
    curve = [(0.0, 1.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, POINTS):
        r = weight * p + (1 - weight) * q
        to_q, to_p = ((of * np.log(of / r)).sum() for of in (q, p))
        curve.append((float(np.exp(-SCALE * to_q)), float(np.exp(-SCALE * to_p))))
    x, y = np.array([*curve, (1.0, 0.0)]).T
    order = np.lexsort((-y, x))
    return float(np.trapezoid(y[order], x[order]))


def ngram_features(texts: Sequence[str]) -> Points:
    """Square roots of the frequencies of byte n-grams, n = 1, 2, 3, hashed to 512 buckets each.

    The Euclidean distance of two rows is then the Hellinger distance of their frequencies. Shape: (texts, 3 * 512).
    """
    rows = np.zeros((len(texts), LONGEST * BUCKETS))
    for row, text in zip(rows, texts, strict=True):
        data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint64)
        for n in range(1, LONGEST + 1):
            count = max(0, len(data) - n + 1)
            code = np.full(count, n, np.uint64)
            for start in range(n):
                code = code << np.uint64(8) | data[start : start + count]
            buckets = (splitmix64(code) % np.uint64(BUCKETS)).astype(np.int64)
            row[(n - 1) * BUCKETS : n * BUCKETS] = np.sqrt(np.bincount(buckets, minlength=BUCKETS) / max(1, count))
    return rows


def principal_components(points: Points) -> Float[np.ndarray, "rows components"]:
    """The coordinates on the principal components that keep 90 % of the variance; at least one."""
    centered = points - points.mean(0)
    left, scale, _ = np.linalg.svd(centered, full_matrices=False)
    variance = np.cumsum(scale**2)
    kept = int(np.searchsorted(variance, VARIANCE * variance[-1])) + 1
    return left[:, :kept] * scale[:kept]


def kmeans(points: Points, k: int, seed: int = 0) -> Labels:
    """Clusters of points by k-means: Lloyd's algorithm, the best of five starts of k-means++ (Arthur & Vassilvitskii
    2007).

    A cluster may stay empty, as it must where fewer than k points differ: samples that are all the same are what this
    is for, and scipy's `kmeans2` warns of them and divides by zero.
    """
    random = np.random.default_rng(seed)
    best, labels = np.inf, np.zeros(len(points), np.int64)
    for _ in range(STARTS):
        centers = points[[int(random.integers(len(points)))]]
        for _ in range(k - 1):
            nearest = _squared_distances(points, centers).min(1)
            weights = nearest / nearest.sum() if nearest.sum() > 0 else None
            centers = np.vstack([centers, points[random.choice(len(points), p=weights)]])
        assigned = np.full(len(points), -1)
        for _ in range(ITERATIONS):
            moved = _squared_distances(points, centers).argmin(1)
            if (moved == assigned).all():
                break
            assigned = moved
            for cluster in np.unique(assigned):
                centers[cluster] = points[assigned == cluster].mean(0)
        inertia = float(_squared_distances(points, centers)[np.arange(len(points)), assigned].sum())
        if inertia < best:
            best, labels = inertia, assigned
    return labels


def _squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return ((points[:, None] - centers[None]) ** 2).sum(2)
