"""Classification and regression of whole texts: an output layer of the task's own on pooled hidden states, and scores.

A sample has weight 1, however long it is. Scores are computed from all predictions at once by torchmetrics, which is
imported only when something is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.data.labelled import LabelledCorpus
from kleiber.objectives.objective import Collected, head_name, rescaled
from kleiber.types.batch import Batch, Loss, Output
from kleiber.types.contracts import Corpus, Objective, Predictions, Scorer
from kleiber.types.model import Model

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


Pooling = Literal["class-token", "last", "mean"]


class Classify(Objective):
    """Cross-entropy of a sample's class; for several classes the mean binary one over them; for a quantity the squared
    error in units of the training labels' variance. All in sums over samples; "ce" is the loss in each case.

    pooling  what stands for the text: the first hidden state, that of the last real token, or the mean of all real ones
    """

    unit = "loss/sample"

    def __init__(self, corpus: Corpus, pooling: Pooling = "mean") -> None:
        if not isinstance(corpus, LabelledCorpus):
            raise ValueError(
                f"objective=classify needs labels, which data={corpus.name} has none of: take data=glue/sst2, "
                "topic/ag_news or another such task, or data=labelled with data.path, data.text and data.label"
            )
        self.pooling: Pooling = pooling
        self.kind: str = corpus.kind
        self.names: list[str] = corpus.label_names
        self.center, self.scale = corpus.center, corpus.scale
        self.head = head_name(corpus.name, corpus.kind, corpus.label, corpus.label_names)
        self.outputs = {self.head: corpus.num_classes}
        self.metric, self.higher_is_better = corpus.metric, corpus.metric != "rmse"
        # Several classes and quantities are not draws from one distribution.
        self.has_predictions = corpus.kind == "single"
        self.class_names = corpus.label_names if corpus.kind == "single" else ()

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.scored(model, batch)[1]

    def scored(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "batch outputs"], Loss]:
        """The outputs for each sample, in fp32, and their loss."""
        if batch.labels is None:
            raise ValueError("objective=classify was given samples without labels: take a labelled data set")
        texts, output = self._read(model, batch)
        scores = model.heads[self.head](texts).float()
        per_sample, right = self._losses(scores, batch.labels)
        aux = rescaled(output, batch, len(batch))
        total = per_sample.sum()
        metrics = {"ce": total.detach(), **{name: value.detach() for name, value in aux.items()}}
        if right is not None:
            metrics["accuracy"] = right.float().sum()
        count = torch.tensor(float(len(batch)), device=total.device)
        return scores, Loss(total + aux["loss"] if "loss" in aux else total, count, metrics)

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The distribution over the classes of each text, cut to the context; each text has weight 1."""
        texts, _ = self._read(model, batch.map(lambda t: t[:, : model.context] if t.dim() == 2 else t))
        return Predictions(texts, model.heads[self.head], texts.new_ones(len(texts)))

    def _read(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "batch dim"], Output]:
        """One vector for each text."""
        if self.pooling == "class-token" and model.causal:
            raise ValueError("objective.pooling=class-token with a causal model: its first token has read nothing else")
        output = model(Batch(tokens=batch.tokens, real=batch.real, segments=batch.segments, samples=batch.samples))
        return pooled(output.hidden, batch.real, self.pooling), output

    def _losses(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.kind == "single":
            return F.cross_entropy(scores, labels, reduction="none"), scores.argmax(1) == labels
        if self.kind == "multi":
            each = F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
            return each.mean(1), ((scores > 0) == (labels > 0.5)).float().mean(1)
        return (scores[:, 0] - (labels.float() - self.center) / self.scale).square(), None

    def scorer(self) -> ClassifyScorer:
        return ClassifyScorer(self)


class ClassifyScorer(Scorer):
    """The metrics of `objectives.classification` over one pass; `report` and `confusion` for single labels."""

    def __init__(self, objective: Classify) -> None:
        super().__init__(objective)
        self.collected = Collected()

    def add(self, model: Model, batch: Batch) -> Loss:
        scores, loss = self.objective.scored(model, batch)
        assert batch.labels is not None
        self.collected.add(batch.samples, scores=scores, labels=batch.labels)
        return loss

    def compute(self) -> dict[str, float]:
        whole = self.collected.whole()
        scores, labels = whole["scores"], whole["labels"]
        if self.objective.kind == "single":
            return single_label(scores, labels)
        if self.objective.kind == "multi":
            return multi_label(scores, labels.float())
        return quantity(scores[:, 0] * self.objective.scale + self.objective.center, labels.float())

    def confusion(self) -> Tensor | None:
        """Who was taken for whom; None where a sample has no single class."""
        if self.objective.kind != "single":
            return None
        whole = self.collected.whole()
        return confusion_matrix(whole["scores"].argmax(1), whole["labels"], len(self.objective.names))

    def report(self) -> list[ClassRow]:
        """A row for each class; none where a sample has no single class."""
        confusion = self.confusion()
        return [] if confusion is None else per_class(confusion, self.objective.names)


def pooled(
    hidden: Float[Tensor, "batch time dim"], real: Bool[Tensor, "batch time"] | None, pooling: Pooling
) -> Float[Tensor, "batch dim"]:
    """One vector a row; padding has no part in it."""
    if pooling == "class-token":
        return hidden[:, 0]
    if real is None:
        return hidden[:, -1] if pooling == "last" else hidden.mean(1)
    lengths = real.sum(1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return (hidden * real[..., None]).sum(1) / lengths[:, None]
