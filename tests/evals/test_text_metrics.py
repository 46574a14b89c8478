"""Metrics of texts against the field's tools: on empty, repeated and odd texts, with one reference or many.

text_metrics.json has what sacrebleu and rouge-score gave for each five of the texts.
"""

import json
import random
import re
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kleiber.evals.text_metrics import (
    METRICS,
    answer_values,
    bleu_counts,
    bleu_of,
    chrf_counts,
    chrf_of,
    corpus_score,
    item_values,
    rouge_values,
)

TOOLS = json.loads(Path(__file__).with_name("text_metrics.json").read_text())
WORDS = (
    *("the", "a", "an", "man", "woman", "dog", "cat", "runs", "sits", "sees", "red", "blue", ",", ".", ";", ":", "!"),
    *("?", "-", "'", '"', "(", ")", "3", "4.5", "1,000", "don't", "well-known", "e-mail", "&quot;", "&amp;", "$", "%"),
    *("Über", "straße", "naïve", "中文", "日本語", "😀", "É", "é", "ﬁ", "İ", "_", "@", "/", "\\", "+", "=", "<"),
    *(">", "[", "]", "~", "`", "^", "{", "}", "|", "#", "Mr.", "U.S.", "x.y", "5-6", "the", "the"),
)


def odd_items(count: int = 500, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Texts with their references: of ten, one is empty, one right, one repeats itself, and so on."""
    draw, items = random.Random(seed), []
    for i in range(count):
        reference = [draw.choice(WORDS) for _ in range(draw.randint(1, 14))]
        references = [" ".join(reference)]
        for _ in range(draw.choice([0, 0, 0, 1, 2, 3])):
            references.append(" ".join(word for word in reference if draw.random() < 0.8) or "x")
        words = [word for word in reference if draw.random() < 0.8]
        for _ in range(draw.randint(0, 3)):
            words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
        text, kind = " ".join(words), i % 10
        if kind == 0:
            text = ""
        elif kind == 1:
            text = references[0]
        elif kind == 2:
            text = " ".join([draw.choice(WORDS)] * draw.randint(1, 30))
        elif kind == 3:
            text = text.upper()
        elif kind == 4:
            text = text.replace(" ", draw.choice(["  ", "\t", " \n "]))
        elif kind == 5:
            text = "".join(draw.sample(text, len(text)))
        items.append((text, references))
    return items


ITEMS = odd_items()


COUNTED = {"bleu": (bleu_counts, bleu_of), "chrf": (chrf_counts, chrf_of)}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_bleu_and_chrf_are_those_of_sacrebleu(name):
    counts, compute = COUNTED[name]
    rows = np.array([counts(text, references) for text, references in ITEMS])
    np.testing.assert_allclose(compute(rows.reshape(100, 5, -1).sum(1)), TOOLS[name], rtol=0, atol=1e-6)
    assert compute(rows.sum(0)) == pytest.approx(TOOLS["all"][name], abs=1e-6)


@pytest.mark.slow
def test_rouge_is_that_of_rouge_score():
    rows = [rouge_values(text, references) for text, references in ITEMS]
    for name in ("rouge1", "rouge2", "rougeL"):
        means = np.array([row[name] for row in rows]).reshape(100, 5).mean(1)
        np.testing.assert_allclose(means, TOOLS[name], rtol=0, atol=1e-6)


def squad_script(text: str, references: list[str]) -> tuple[float, float]:
    """Exact match and F1 as the script of SQuAD 2 computes them."""

    def words(value: str) -> list[str]:
        value = "".join(letter for letter in value.lower() if letter not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", value).split()

    def f1(reference: str) -> float:
        found, right = words(text), words(reference)
        if not found or not right:
            return float(found == right)
        shared = (Counter(found) & Counter(right)).total()
        precision, recall = shared / len(found), shared / len(right)
        return 2 * precision * recall / (precision + recall) if shared else 0.0

    return max(float(words(text) == words(each)) for each in references), max(map(f1, references))


def test_exact_match_and_f1_are_those_of_the_script_of_squad():
    for text, references in ITEMS:
        values = answer_values(text, references)
        expected = squad_script(text, references)
        assert (values["exact_match"], values["f1"]) == pytest.approx(expected, abs=1e-6), (text, references)


def test_intervals_are_of_the_items_and_equal_texts_have_equal_ones():
    texts, references = zip(*ITEMS[:60], strict=True)
    names = ("bleu", "chrf", "exact_match", "f1")
    scores = {key: value.score for name in names for key, value in METRICS[name](texts, references).items()}
    assert all(score.lo < score.value < score.hi and score.n == 60 for score in scores.values())
    counts = np.array([bleu_counts(text, each) for text, each in ITEMS[:60]])
    drawn = np.random.default_rng(5).integers(60, size=(3000, 60))
    expected = np.quantile(bleu_of(counts[drawn].sum(1)), [0.05, 0.95])
    np.testing.assert_allclose([scores["bleu"].lo, scores["bleu"].hi], expected, rtol=0.05)
    assert corpus_score(counts[:1], bleu_of).lo is None


@pytest.mark.parametrize("name", COUNTED)
def test_values_of_items_have_the_mean_of_the_score_and_its_noise(name):
    """So two models are compared by differences of equal items, as a paired bootstrap of both does."""
    counts_of, compute = COUNTED[name]
    texts, references = zip(*ITEMS[:200], strict=True)
    rng = np.random.default_rng(3)
    others = [" ".join(word for word in text.split() if rng.random() < 0.8) for text in texts]
    sides = []
    for each in (texts, others):
        counts = np.array([counts_of(text, right) for text, right in zip(each, references, strict=True)])
        measured = METRICS[name](each, references)[name]
        assert measured.items.mean() == pytest.approx(measured.score.value, abs=1e-9)
        sides.append((counts, measured.items))
    differences = sides[0][1] - sides[1][1]
    drawn = rng.integers(200, size=(4000, 200))
    bootstrap = compute(sides[0][0][drawn].sum(1)) - compute(sides[1][0][drawn].sum(1))
    assert differences.std(ddof=1) / np.sqrt(200) == pytest.approx(bootstrap.std(), rel=0.1)
    np.testing.assert_allclose(item_values(sides[0][0][:1], compute), [compute(sides[0][0][0])])
