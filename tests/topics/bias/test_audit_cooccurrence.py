"""Contexts against a direct loop, the log-odds ratio by hand, and planted text."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from kleiber_topics.bias.audit import PRIOR, Contexts, associations
from kleiber_topics.bias.occupations import OccupationText, stereotype
from kleiber_topics.bias.word_lists import occupations, read_pairs
from kleiber_topics.bias.word_swap import WORD, WordSwap

SWAP = WordSwap(read_pairs("gender", "k"))
TEXTS = ["He was a cook and she a nurse, she said.", "The cook saw him. A nurse, far away from anybody, was asleep."]


@pytest.mark.parametrize("window", [1, 2, 5, 50])
def test_a_word_is_near_a_group_within_the_window(window):
    contexts = count_contexts(TEXTS, SWAP, window)
    near, words = (Counter(), Counter()), Counter()
    for text in TEXTS:
        tokens = [token.lower() for token in WORD.findall(text)]
        groups = [0 if token in ("he", "him") else 1 if token == "she" else -1 for token in tokens]
        for at, token in enumerate(tokens):
            if groups[at] >= 0:
                continue
            words[token] += 1
            for group in (0, 1):
                near[group][token] += any(g == group and abs(place - at) <= window for place, g in enumerate(groups))
    assert contexts.words == words and contexts.group_size == [2, 2]
    assert [+counter for counter in near] == list(contexts.near)


def count_contexts(texts: Iterable[str], swap: WordSwap, window: int) -> Contexts:
    contexts = Contexts()
    for text in texts:
        contexts.add(text, swap, window)
    return contexts


def test_the_log_odds_ratio_is_that_of_monroe_et_al():
    contexts = count_contexts(TEXTS * 20, SWAP, 3)
    (row,) = associations(contexts, ["cook", "absent"])
    size, totals = sum(contexts.words.values()), [sum(near.values()) for near in contexts.near]
    alpha = PRIOR * contexts.words["cook"] / size
    y = [near["cook"] for near in contexts.near]
    odds = [np.log((y[g] + alpha) / (totals[g] + PRIOR - y[g] - alpha)) for g in (0, 1)]
    assert row.log_odds == pytest.approx(odds[0] - odds[1])
    assert row.hi - row.lo == pytest.approx(2 * 1.6449 * np.sqrt(sum(1 / (n + alpha) for n in y)), rel=1e-4)
    assert row.pmi_first == pytest.approx(np.log2(y[0] / totals[0] / (contexts.words["cook"] / size)))
    assert associations(contexts, ["cook"], prior=5000.0)[0].log_odds < row.log_odds


def test_a_planted_bias_is_found_and_none_in_balanced_text():
    swap = WordSwap(read_pairs("gender", "k"), read_pairs("names", "k"))
    jobs = occupations()
    for skew, least, most in ((0.9, 30, 38), (0.5, 0, 6)):
        found = associations(count_contexts(OccupationText(skew, 2000, 0).texts(), swap, 10), [*jobs])
        certain = [row for row in found if row.q <= 0.1]
        assert least <= len(certain) <= most
        if skew > 0.5:
            assert all((row.log_odds < 0) == (stereotype(jobs[row.term]) == "female") for row in certain)


def test_words_are_ranked_by_how_certain_their_ratio_is():
    texts = ["he saw gold"] * 60 + ["she saw gold"] * 10 + ["he saw tin"] * 5 + ["she saw silk"] * 30
    rows = associations(count_contexts(texts, SWAP, 5), ["gold", "tin", "silk"])
    assert [row.term for row in rows] == ["gold", "tin", "silk"] and rows[1].log_odds > rows[0].log_odds
    assert rows[0].z > rows[1].z > 0 > rows[2].z


def test_without_a_list_frequent_words_are_reported_and_without_contexts_none():
    contexts = count_contexts(TEXTS * 5, SWAP, 10)
    assert {"cook", "nurse", "was"} <= {row.term for row in associations(contexts, None)}
    assert associations(count_contexts(["it rained"], SWAP, 5), None) == []
    assert associations(count_contexts(["he sat"], SWAP, 5), None) == []
