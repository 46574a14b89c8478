"""Scores of predictions against labels: one number a metric, a row a class, and who was taken for whom.

Everything is computed from all predictions at once, by torchmetrics, which is imported only when something is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15  # of confidence, for the calibration error (Guo et al. 2017, arXiv:1706.04599)


def single_label(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]) -> dict[str, float]:
    """accuracy, macro_f1, mcc (0 for constant predictions or labels), f1 (of class 1, if there are two), and ece.

    ece  expected calibration error: sum over bins of share |accuracy - mean confidence|, 15 bins of equal width
    macro_f1 is the mean over the classes that occur among labels or predictions.
    """
    from torchmetrics.functional import classification as metrics

    classes, guess = logits.shape[1], logits.argmax(1)
    found: dict[str, Any] = {
        "accuracy": (guess == labels).float().mean(),
        "macro_f1": metrics.multiclass_f1_score(guess, labels, classes, average="macro"),
        "mcc": 0.0,
        "ece": metrics.multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=BINS),
    }
    if len(guess.unique()) > 1 and len(labels.unique()) > 1:  # of two classes torchmetrics gives constants some
        found["mcc"] = metrics.multiclass_matthews_corrcoef(guess, labels, classes)
    if classes == 2:
        found["f1"] = metrics.binary_f1_score(guess, labels)
    return {name: float(value) for name, value in found.items()}


def multi_label(logits: Float[Tensor, "rows classes"], labels: Float[Tensor, "rows classes"]) -> dict[str, float]:
    """accuracy (of single decisions), micro_f1, macro_f1, at probability 1/2; ece of the single decisions."""
    from torchmetrics.functional import classification as metrics

    truth, probability = labels.long(), logits.sigmoid()
    found: dict[str, Any] = {
        "accuracy": ((probability > 0.5).long() == truth).float().mean(),
        "micro_f1": metrics.multilabel_f1_score(probability, truth, labels.shape[1], average="micro"),
        "macro_f1": metrics.multilabel_f1_score(probability, truth, labels.shape[1], average="macro"),
        "ece": metrics.binary_calibration_error(probability.flatten(), truth.flatten(), n_bins=BINS),
    }
    return {name: float(value) for name, value in found.items()}


def quantity(values: Float[Tensor, "rows"], labels: Float[Tensor, "rows"]) -> dict[str, float]:
    """pearson, spearman (both 0 where predictions or labels are constant) and rmse, in the units of the labels."""
    from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

    found = {"rmse": float((values - labels).square().mean().sqrt()), "pearson": 0.0, "spearman": 0.0}
    if len(values) > 1 and bool(values.std() > 1e-6 * values.abs().max()) and bool(labels.std() > 0):
        values, labels = values.double(), labels.double()
        found["pearson"] = float(pearson_corrcoef(values, labels))
        found["spearman"] = float(spearman_corrcoef(values, labels))
    return found


@dataclass(frozen=True)
class ClassRow:
    """One class: how many samples have it, and how well they are found."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


def per_class(confusion: Int[Tensor, "classes classes"], names: list[str]) -> list[ClassRow]:
    """Precision, recall and F1 of each class (0 where nothing was predicted or nothing was there)."""
    rows = []
    for i, name in enumerate(names):
        hit, truly, said = (int(n) for n in (confusion[i, i], confusion[i].sum(), confusion[:, i].sum()))
        precision, recall = hit / said if said else 0.0, hit / truly if truly else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
        rows.append(ClassRow(name, truly, precision, recall, f1))
    return rows


def confusion_matrix(guess: Int[Tensor, "rows"], labels: Int[Tensor, "rows"], classes: int) -> Int[Tensor, "c c"]:
    """Entry (i, j): samples of class i that were taken for class j."""
    return torch.bincount(labels * classes + guess, minlength=classes * classes).view(classes, classes)
