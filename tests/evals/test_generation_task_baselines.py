"""Texts of rules that need no model."""

import numpy as np
import pytest

from kleiber.evals.generation import nearest_rows

STORED = ["a red dog runs", "the cat sleeps on a mat", "two men play chess", "a dog and a cat"]


def test_the_nearest_row_has_the_words_in_common_that_are_rare():
    texts = ["RED dogs: a red dog?", "chess men", "cat, mat!", "zebra", ""]
    assert nearest_rows(STORED, texts) == [0, 2, 1, 0, 0]


def test_the_weights_are_those_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    stored, texts = ([" ".join(random.choice(words, 8)) for _ in range(count)] for count in (60, 300))
    vectors = text.TfidfVectorizer(token_pattern=r"\w+").fit(stored)
    similar = (vectors.transform(texts) @ vectors.transform(stored).T).toarray()
    chosen = nearest_rows(stored, texts)
    np.testing.assert_allclose(similar[range(300), chosen], similar.max(1), atol=1e-12)
