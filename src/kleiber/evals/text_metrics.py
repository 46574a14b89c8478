"""Metrics of generated texts against references: BLEU, chrF, ROUGE, exact match and F1.

BLEU and chrF are scores of all texts together, from counts of n-grams that are summed over texts; they equal those of
sacrebleu 2.6 with its default settings (13a tokens, exponential smoothing; six orders of characters, beta 2). The
others are means over texts, of the best reference of each: ROUGE as in rouge-score without stemming, exact match and F1
as in the script of SQuAD 2. torchmetrics counts the latter; its BLEU has another smoothing and its chrF another mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kleiber.evals.evaluation import CHUNK, RESAMPLES, Score, mean_score, percentile_score, proportion_score

Texts = Sequence[str]
Counts = Float[np.ndarray, "*items counts"]
Values = Float[np.ndarray, "*items"]

BLEU_ORDER, CHRF_ORDER, BETA = 4, 6, 2.0
ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
TOKENS_13A = (  # of mteval-v13a: punctuation, periods and commas unless between digits, and dashes after digits
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokenize_13a(text: str) -> list[str]:
    """Returns the tokens of a text as mteval-v13a cuts it, on which BLEU is reported."""
    text = text.rstrip()
    for old, new in ENTITIES:
        text = text.replace(old, new)
    text = f" {text} "
    for pattern, replacement in TOKENS_13A:
        text = pattern.sub(replacement, text)
    return text.split()


def count_ngrams(items: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Returns how often each sequence of `order` items occurs."""
    return Counter(zip(*(items[start:] for start in range(order)), strict=False))


def bleu_counts(text: str, references: Texts) -> list[float]:
    """Returns the tokens of the text and of the reference of the nearest length, then matches and n-grams by order."""
    tokens, others = tokenize_13a(text), [tokenize_13a(reference) for reference in references]
    length = min(map(len, others), key=lambda count: (abs(count - len(tokens)), count))
    matches, totals = [], []
    for order in range(1, BLEU_ORDER + 1):
        counts, allowed = count_ngrams(tokens, order), Counter()
        for other in others:
            allowed |= count_ngrams(other, order)
        matches.append(float((counts & allowed).total()))
        totals.append(float(counts.total()))
    return [float(len(tokens)), float(length), *matches, *totals]


def bleu_of(counts: Counts) -> Values:
    """Returns BLEU from 0 to 100, of sums of `bleu_counts`.

    Papineni et al. 2002; an order without a match has half the precision of a single one, the next a quarter, and so on
    (Chen and Cherry 2014, smoothing 3), and BLEU is 0 without any match and for texts shorter than four tokens.
    """
    length, reference = counts[..., 0], counts[..., 1]
    matches, totals = counts[..., 2 : 2 + BLEU_ORDER], counts[..., 2 + BLEU_ORDER :]
    missing = matches == 0
    numerators = np.where(missing, 0.5 ** missing.cumsum(-1), matches)
    valid = (totals > 0).all(-1) & (matches > 0).any(-1)
    precisions = numerators / np.where(totals > 0, totals, 1.0)
    brevity = np.minimum(0.0, 1 - reference / np.maximum(length, 1.0))
    return np.where(valid, 100 * np.exp(np.log(precisions).mean(-1) + brevity), 0.0)


def chrf_counts(text: str, references: Texts) -> list[float]:
    """Returns for each order the n-grams of characters of the text, of its best reference, and their matches."""
    characters = "".join(text.split())
    candidates = []
    for reference in references:
        other, counts = "".join(reference.split()), []
        for order in range(1, CHRF_ORDER + 1):
            of_text, of_reference = count_ngrams(characters, order), count_ngrams(other, order)
            total = of_text.total() if of_reference else 0
            counts += [total, of_reference.total(), (of_text & of_reference).total()]
        candidates.append(np.array(counts, np.float64))
    return max(candidates, key=lambda counts: float(chrf_of(counts))).tolist()


def chrf_of(counts: Counts) -> Values:
    """Returns chrF from 0 to 100, of sums of `chrf_counts` (Popović 2015): F of the mean precision and recall."""
    of_text, of_reference, matches = (counts[..., part::3] for part in range(3))
    comparable = (of_text > 0) & (of_reference > 0)
    orders = np.maximum(comparable.sum(-1), 1)
    precision = np.where(comparable, matches / np.maximum(of_text, 1), 0.0).sum(-1) / orders
    recall = np.where(comparable, matches / np.maximum(of_reference, 1), 0.0).sum(-1) / orders
    total = BETA**2 * precision + recall
    return np.asarray(100 * (1 + BETA**2) * precision * recall / np.where(total > 0, total, 1.0))


def corpus_score(counts: Counts, compute: Callable[[Counts], Values]) -> Score:
    """Returns a score of sums over items, with a percentile bootstrap interval over the items.

    Equal numbers of items get equal resamples, so metrics and models can be compared on the same items.

    counts  of each item
    """
    value, items = float(compute(counts.sum(0))), len(counts)
    if items < 2:
        return Score(value, n=items)
    random, size = np.random.default_rng(0), max(1, CHUNK // counts.size)
    draws = [
        compute(counts[random.integers(items, size=(min(size, RESAMPLES - start), items))].sum(1))
        for start in range(0, RESAMPLES, size)
    ]
    return percentile_score(value, np.concatenate(draws), items)


class Measured(NamedTuple):
    """A score of texts, and a value of each text, whose mean is that of the score."""

    score: Score
    items: Values


def item_values(counts: Counts, compute: Callable[[Counts], Values]) -> Values:
    """Returns a value of each item for a score of all together: its mean is the score, its standard error that of it.

    They are jackknife pseudo-values (Tukey 1958), shifted to that mean. Two models can be compared by the differences
    of the values of equal items.

    counts  of each item
    """
    total, items = counts.sum(0), len(counts)
    without = compute(total - counts) if items > 1 else np.zeros(1)
    return np.asarray(compute(total) + (items - 1) * (without.mean() - without), np.float64)


def bleu(texts: Texts, references: Sequence[Texts]) -> dict[str, Measured]:
    """Returns BLEU of the texts, each with one or more references."""
    counts = np.array([bleu_counts(text, each) for text, each in zip(texts, references, strict=True)])
    return {"bleu": Measured(corpus_score(counts, bleu_of), item_values(counts, bleu_of))}


def chrf(texts: Texts, references: Sequence[Texts]) -> dict[str, Measured]:
    """Returns chrF of the texts, each with one or more references."""
    counts = np.array([chrf_counts(text, each) for text, each in zip(texts, references, strict=True)])
    return {"chrf": Measured(corpus_score(counts, chrf_of), item_values(counts, chrf_of))}


def rouge_values(text: str, references: Texts) -> dict[str, float]:
    """Returns the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L of a text, each of the best reference for it."""
    from torchmetrics.functional.text.rouge import rouge_score

    keys = ("rouge1", "rouge2", "rougeL")
    scores = [rouge_score(text, reference, rouge_keys=keys) for reference in references]
    return {key: max(float(score[f"{key}_fmeasure"]) for score in scores) for key in keys}


def rouge(texts: Texts, references: Sequence[Texts]) -> dict[str, Measured]:
    """Returns the means of `rouge_values`."""
    rows = [rouge_values(text, each) for text, each in zip(texts, references, strict=True)]
    values = {key: np.array([row[key] for row in rows]) for key in ("rouge1", "rouge2", "rougeL")}
    return {key: Measured(mean_score(items), items) for key, items in values.items()}


def answer_values(text: str, references: Texts) -> dict[str, float]:
    """Returns exact match and F1 of a text, in lower case, without punctuation and articles, of the best reference."""
    from torchmetrics.functional.text.squad import squad

    answers = {"text": [*references], "answer_start": [0] * len(references)}
    scores = squad({"prediction_text": text, "id": ""}, {"answers": answers, "id": ""})
    return {key: float(scores[key]) / 100 for key in ("exact_match", "f1")}


def exact_match(texts: Texts, references: Sequence[Texts]) -> dict[str, Measured]:
    """Returns the share of texts that equal one of their references."""
    rows = [answer_values(text, each)["exact_match"] for text, each in zip(texts, references, strict=True)]
    return {"exact_match": Measured(proportion_score(rows), np.array(rows))}


def f1(texts: Texts, references: Sequence[Texts]) -> dict[str, Measured]:
    """Returns the mean F1 of the words of the texts."""
    rows = [answer_values(text, each)["f1"] for text, each in zip(texts, references, strict=True)]
    return {"f1": Measured(mean_score(rows), np.array(rows))}


METRICS = {"bleu": bleu, "chrf": chrf, "rouge": rouge, "exact_match": exact_match, "f1": f1}
