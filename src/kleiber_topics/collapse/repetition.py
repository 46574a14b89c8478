"""Measures of repetition within samples and of diversity over samples.

A sample is a sequence of units: the tokens of a subword tokenizer, or the words and punctuation marks of a text.
Numbers of n-grams depend on the lengths and the number of samples, so only sets of equal size may be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

from kleiber.evals import LEVEL
from kleiber.types import Score

Units = Sequence[Hashable]
Gram = tuple[Hashable, ...]

LONGEST_PERIOD = 16  # units of a loop
LEAST_LOOP, REPEATS = 8, 3  # a loop covers at least this many units, and this many periods
ORDERS = 4  # of the n-grams of BLEU


def ngrams(sample: Units, n: int) -> Iterator[Gram]:
    """The n-grams of a sample, in order; none where it is shorter than n units."""
    return zip(*(sample[start:] for start in range(n)), strict=False)


def distinct(samples: Sequence[Units], n: int) -> Score | None:
    """distinct-n: the number of different n-grams of all samples over that of all their n-grams (Li et al. 2016,
    arXiv:1510.03055). None where no sample has n units.

    The interval is a jackknife over samples: one that is drawn twice, as in a bootstrap, would count as repetition.
    """
    sets = [Counter(ngrams(sample, n)) for sample in samples]
    owners = Counter(gram for grams in sets for gram in grams)  # number of samples with an n-gram
    total = sum(grams.total() for grams in sets)
    if total == 0:
        return None
    without = [
        (len(owners) - sum(owners[gram] == 1 for gram in grams)) / (total - grams.total())
        for grams in sets
        if grams.total() < total
    ]
    return jackknife(len(owners) / total, len(samples), without, highest=1.0)


def repetition(sample: Units, n: int) -> float | None:
    """rep-n: the share of the n-grams of a sample that occurred before in it; None below n units.

    rep-4 is seq-rep-4 of Welleck et al. 2019, arXiv:1908.04319, equation 8.
    """
    grams = list(ngrams(sample, n))
    return 1 - len(set(grams)) / len(grams) if grams else None


def longest_repeat(sample: Units) -> int:
    """Units of the longest span that occurs at least twice in a sample; the two may overlap, as they do in a loop."""
    low, high = 0, max(0, len(sample) - 1)
    while low < high:  # a span of k units that occurs twice begins with one of k - 1 units that does
        middle = (low + high + 1) // 2
        grams = list(ngrams(sample, middle))
        low, high = (middle, high) if len(set(grams)) < len(grams) else (low, middle - 1)
    return low


def ends_in_loop(sample: Units, longest_period: int = LONGEST_PERIOD, least: int = LEAST_LOOP) -> bool:
    """Whether a sample ends in a loop: a period of at most `longest_period` units that repeats up to the end.

    The loop covers at least three periods and `least` units.
    """
    for period in range(1, longest_period + 1):
        span = max(REPEATS * period, least)
        tail = sample[-span:]
        if len(sample) >= span and list(tail[period:]) == list(tail[:-period]):
            return True
    return False


def self_bleu(samples: Sequence[Units]) -> list[float]:
    """self-BLEU-4 of each sample: its BLEU with all others as references, from 0 to 1 (Zhu et al. 2018,
    arXiv:1802.01886). High values mean samples that are alike.

    As sacrebleu's `sentence_score` with `effective_order`: precisions of 0 are smoothed exponentially, and orders for
    which a sample is too short are left out.
    """
    matched = np.zeros((len(samples), ORDERS))
    totals = np.array([[max(0, len(sample) - n) for n in range(ORDERS)] for sample in samples])
    for n in range(1, ORDERS + 1):
        counts = [Counter(ngrams(sample, n)) for sample in samples]
        largest: dict[Gram, tuple[int, int, int]] = {}  # largest count, the sample that has it, next largest count
        for i, grams in enumerate(counts):
            for gram, count in grams.items():
                most, owner, second = largest.get(gram, (0, -1, 0))
                largest[gram] = (count, i, most) if count > most else (most, owner, max(second, count))
        for i, grams in enumerate(counts):
            for gram, count in grams.items():
                most, owner, second = largest[gram]
                matched[i, n - 1] += min(count, second if owner == i else most)
    lengths = np.array([len(sample) for sample in samples])
    return [
        _bleu(matched[i], totals[i], int(lengths[i]), _closest(int(lengths[i]), np.delete(lengths, i)))
        for i in range(len(samples))
    ]


def _closest(length: int, others: np.ndarray) -> int:
    """The length among `others` that is closest to `length`; the shorter one of two."""
    return int(min(others, key=lambda other: (abs(int(other) - length), int(other))))


def _bleu(matched: np.ndarray, totals: np.ndarray, length: int, reference: int) -> float:
    if not matched.any():
        return 0.0
    logs, smooth = [], 1.0
    for correct, total in zip(matched, totals, strict=True):
        if total == 0:
            break
        if correct == 0:
            smooth *= 2
        logs.append(math.log((correct or 1 / smooth) / total))
    brevity = min(0.0, 1 - reference / length)
    return math.exp(brevity + sum(logs) / len(logs))


def jackknife(
    value: float, n: int, *without: Sequence[float] | np.ndarray, lowest: float = 0.0, highest: float = math.inf
) -> Score:
    """A statistic of samples with the interval of the delete-one jackknife (Efron & Stein 1981).

    n                number of samples
    without          for each independent set of samples: the statistic without each of them
    lowest, highest  range of the statistic, to which the interval is cut
    """
    variance = 0.0
    for values in map(np.asarray, without):
        if len(values) > 1:
            variance += float((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance)
    return Score(value, max(lowest, value - half), min(highest, value + half), n)
