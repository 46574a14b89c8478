"""References for the scores of a classifier: what its largest class, and a linear model of words, score."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Shaped

from kleiber.evals.evaluation import Evaluation, Results, Score, Subject
from kleiber.objectives.classify import Classify, regression_metrics, single_label_metrics
from kleiber.types import Count, Positive
from kleiber.types.contracts import Samples
from kleiber.types.score import Metrics, variants
from kleiber.types.tokenizer import Tokenizer

BATCH = 1024  # rows read at once
TINY = 1e-12  # probability of a class that was not in the training rows

Labels = Shaped[np.ndarray, "_"]
Features = Any  # a sparse matrix of scipy, of a class that depends on the version of scikit-learn


class Reference(Evaluation):
    """Scores of two references that are fitted to the training rows of the run, on its validation rows.

    majority/<metric>  the most frequent class of the training rows, or the mean of a quantity
    tfidf/<metric>     logistic regression of the class, or ridge regression of a quantity, on TF-IDF weights of words
                       (Spärck Jones 1972): logarithmic counts, and of two texts all words together

    The text is what the model reads: cut at the context. The metrics are those of objective=classify.

    ngrams   longest sequence of words that is a feature
    inverse  C of the logistic regression, the inverse of the strength of its L2 penalty; that of ridge is 1 / C
    """

    reads = "the rows of a run with objective=classify"
    metrics: ClassVar[Metrics] = {
        **variants(Classify.metrics, "majority/*", "* of the largest class"),
        **variants(Classify.metrics, "tfidf/*", "* of TF-IDF features"),
    }

    def __init__(self, ngrams: Count = 2, inverse: Positive = 10.0) -> None:
        self.ngrams, self.inverse = ngrams, inverse

    def evaluate(self, subject: Subject) -> Results:
        """Scores of both references. Raises ValueError for a run of another objective, for rows with several classes,
        and without the extra `reference`."""
        objective = subject.objective
        if not isinstance(objective, Classify) or subject.train is None:
            raise ValueError(f"--evals reference reads {self.reads}; this is objective={type(objective).__name__}")
        if objective.kind == "multi":
            raise ValueError("--evals reference reads rows of one class or one quantity; these have several classes")
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise ValueError("--evals reference needs scikit-learn: pip install 'kleiber[reference]'") from None
        vectorizer = TfidfVectorizer(ngram_range=(1, self.ngrams), sublinear_tf=True, token_pattern=r"\S+")
        texts, labels = texts_and_labels(subject.train, subject.tokenizer)
        features = vectorizer.fit_transform(texts)
        scores: dict[str, dict[str, Score]] = {}
        for data in subject.data:
            held_out, truth = texts_and_labels(subject.samples(data.name), subject.tokenizer)
            unlabelled = vectorizer.transform(held_out)
            if objective.kind == "regression":
                measured = quantity_metrics(features, labels, unlabelled, truth, 1 / self.inverse)
            else:
                measured = class_metrics(features, labels, unlabelled, truth, len(objective.names), self.inverse)
            scores[data.name] = {
                f"{name}/{metric}": Score(value, n=len(truth))
                for name, metrics in measured.items()
                for metric, value in metrics.items()
            }
        return Results(scores)


def texts_and_labels(samples: Samples, tokenizer: Tokenizer) -> tuple[list[str], Labels]:
    """The text of every sample, without special tokens, and its label."""
    texts: list[str] = []
    labels: list[Labels] = []
    special = {tokenizer.eos, tokenizer.cls, tokenizer.begin}
    for start in range(0, len(samples), BATCH):
        batch = samples.gather(np.arange(start, min(start + BATCH, len(samples))))
        assert batch.tokens is not None and batch.real is not None and batch.labels is not None
        for ids, real in zip(batch.tokens, batch.real, strict=True):
            pieces: list[list[int]] = [[]]
            for token in ids[real].tolist():
                if token in special:
                    pieces.append([])
                else:
                    pieces[-1].append(token)
            texts.append(" ".join(tokenizer.decode(piece) for piece in pieces if piece))
        labels.append(batch.labels.numpy())
    return texts, np.concatenate(labels)


def class_metrics(
    features: Features, labels: Labels, unlabelled: Features, truth: Labels, classes: int, inverse: float
) -> dict[str, dict[str, float]]:
    """Metrics of the largest class and of logistic regression, in which a class without training rows has
    probability 0."""
    from sklearn.linear_model import LogisticRegression

    shares = np.bincount(labels, minlength=classes) / len(labels)
    largest = np.tile(shares, (len(truth), 1))
    fitted = largest.copy()
    if np.count_nonzero(shares) > 1:
        regression = LogisticRegression(C=inverse, max_iter=1000).fit(features, labels)
        fitted = np.zeros_like(largest)
        fitted[:, regression.classes_] = regression.predict_proba(unlabelled)
    return {
        name: single_label_metrics(torch.from_numpy(np.log(values + TINY)), torch.from_numpy(truth))
        for name, values in (("majority", largest), ("tfidf", fitted))
    }


def quantity_metrics(
    features: Features, labels: Labels, unlabelled: Features, truth: Labels, strength: float
) -> dict[str, dict[str, float]]:
    """Metrics of the mean of the training labels and of ridge regression."""
    from sklearn.linear_model import Ridge

    mean = np.full(len(truth), labels.mean(), dtype=np.float64)
    fitted = np.asarray(Ridge(alpha=strength).fit(features, labels).predict(unlabelled), dtype=np.float64)
    return {
        name: regression_metrics(torch.from_numpy(values), torch.from_numpy(truth.astype(np.float64)))
        for name, values in (("majority", mean), ("tfidf", fitted))
    }
