"""Classification and regression of whole texts, by an output layer for the task on pooled hidden states; their metrics.

Every sample has weight 1, however long it is. torchmetrics computes the metrics from all predictions at once. It is
imported only for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.data.labelled import LabelledCorpus
from kleiber.nn.heads import head_name
from kleiber.objectives.auxiliary import loss_with_auxiliary, real_tokens
from kleiber.objectives.sample_table import SampleTable
from kleiber.types import Positive
from kleiber.types.batch import Batch, Loss, Output
from kleiber.types.contracts import Corpus, Objective, Predictions, Scorer
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics

BINS = 15  # of confidence, for the calibration error (Guo et al. 2017, arXiv:1706.04599)


def single_label_metrics(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]) -> dict[str, float]:
    """Metrics of samples with one class each.

    accuracy  share of correct predictions
    macro_f1  mean F1 over the classes that occur among labels or predictions
    mcc       Matthews correlation coefficient; 0 where predictions or labels are constant
    f1        F1 of class 1, where there are two classes
    ece       expected calibration error: sum of share |accuracy - mean confidence| over 15 bins of equal width
    """
    from torchmetrics.functional import classification

    classes, predicted = logits.shape[1], logits.argmax(1)
    metrics = {
        "accuracy": (predicted == labels).float().mean(),
        "macro_f1": classification.multiclass_f1_score(predicted, labels, classes, average="macro"),
        "mcc": torch.tensor(0.0),
        "ece": classification.multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=BINS),
    }
    # With two classes, torchmetrics returns values other than 0 for constants.
    if len(predicted.unique()) > 1 and len(labels.unique()) > 1:
        metrics["mcc"] = classification.multiclass_matthews_corrcoef(predicted, labels, classes)
    if classes == 2:
        metrics["f1"] = classification.binary_f1_score(predicted, labels)
    return {name: float(value) for name, value in metrics.items()}


def multi_label_metrics(
    logits: Float[Tensor, "rows classes"], labels: Float[Tensor, "rows classes"]
) -> dict[str, float]:
    """Metrics of samples with any number of classes, of which those with a probability above 1/2 are predicted.

    accuracy, ece       of the single decisions (see `single_label_metrics`)
    micro_f1, macro_f1  F1 of all decisions, and its mean over classes
    """
    from torchmetrics.functional import classification

    truth, probability = labels.long(), logits.sigmoid()
    metrics = {
        "accuracy": ((probability > 0.5).long() == truth).float().mean(),
        "micro_f1": classification.binary_f1_score(probability.flatten(), truth.flatten()),
        "macro_f1": torch.stack([*map(classification.binary_f1_score, probability.T, truth.T)]).mean(),
        "ece": classification.binary_calibration_error(probability.flatten(), truth.flatten(), n_bins=BINS),
    }
    return {name: float(value) for name, value in metrics.items()}


def regression_metrics(values: Float[Tensor, "rows"], labels: Float[Tensor, "rows"]) -> dict[str, float]:
    """rmse in the units of the labels; pearson and spearman correlation, 0 where predictions or labels are constant."""
    from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

    metrics = {
        "rmse": float((values - labels).square().mean().sqrt()),
        "pearson": 0.0,
        "spearman": 0.0,
    }
    if len(values) > 1 and bool(values.std() > 1e-6 * values.abs().max()) and bool(labels.std() > 0):
        values, labels = values.double(), labels.double()
        metrics["pearson"] = float(pearson_corrcoef(values, labels))
        metrics["spearman"] = float(spearman_corrcoef(values, labels))
    return metrics


@dataclass(frozen=True)
class ClassRow:
    """Metrics of one class; `support` is the number of samples that have it."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


def class_rows(confusion: Int[Tensor, "classes classes"], names: list[str]) -> list[ClassRow]:
    """Precision, recall and F1 of each class; 0 where no sample has the class or is predicted to have it."""
    rows = []
    for i, name in enumerate(names):
        correct, support, predicted = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
        precision = correct / predicted if predicted else 0.0
        recall = correct / support if support else 0.0
        f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
        rows.append(ClassRow(name, support, precision, recall, f1))
    return rows


def confusion_matrix(predicted: Int[Tensor, "rows"], labels: Int[Tensor, "rows"], classes: int) -> Int[Tensor, "c c"]:
    """Entry (i, j): number of samples of class i that are predicted to have class j."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


Pooling = Literal["class-token", "last", "mean"]


class Classify(Objective):
    """The loss of a sample's label, summed over samples; the metric "ce" is the same number.

    For one class per sample it is the cross-entropy in nats, for any number of classes the mean over classes of the
    binary cross-entropy, and for a quantity the squared error in units of the variance of the training labels.

    pooling  the vector of a text: its first hidden state ("class-token"), that of the last real token ("last"), or the
             mean of the hidden states of all real tokens ("mean")
    scale    root mean square to which the vector is scaled; null: as it is. Under Adam, whose steps do not depend on
             the scale of the gradient, the scores then change in proportion to it in a step: a new output layer on a
             trained model has to learn faster than the model
    """

    metrics: ClassVar[Metrics] = {
        "loss": Metric("loss", "lower", "per sample"),
        "accuracy": Metric("accuracy", "higher"),
        "f1": Metric("F1", "higher"),
        "macro_f1": Metric("macro F1", "higher"),
        "micro_f1": Metric("micro F1", "higher"),
        "mcc": Metric("Matthews correlation", "higher"),
        "ece": Metric("expected calibration error", "lower"),
        "rmse": Metric("root mean square error", "lower", "units of the label"),
        "pearson": Metric("Pearson correlation", "higher"),
        "spearman": Metric("Spearman correlation", "higher"),
    }
    default_epochs = 3.0
    fine_tuning: ClassVar[Mapping[str, float] | None] = {"objective.scale": 16.0, "schedule.decay": 0.9}

    def __init__(self, corpus: Corpus, pooling: Pooling = "mean", scale: Positive | None = None) -> None:
        if not isinstance(corpus, LabelledCorpus):
            raise ValueError(
                f"objective=classify needs labels, and data={corpus.name} has none: set data=glue/sst2, topic/ag_news "
                "or another labeled task, or data=labelled with data.path, data.text and data.label"
            )
        self.pooling: Pooling = pooling
        self.row_scale = scale
        self.kind: str = corpus.kind
        self.names: list[str] = corpus.label_names
        self.center, self.scale = corpus.center, corpus.scale
        self.head = head_name(corpus.name, corpus.kind, corpus.label, corpus.label_names)
        self.outputs = {self.head: corpus.num_classes}
        self.metric = corpus.metric
        # Only a single class is a draw from one distribution.
        self.has_predictions = corpus.kind == "single"
        self.class_names = corpus.label_names if corpus.kind == "single" else ()

    def check(self, model: Model) -> None:
        """Raises ValueError for a pooling that reads nothing of the text from the model."""
        if model.causal and self.pooling == "class-token":
            raise ValueError(
                "objective.pooling=class-token needs a bidirectional model, because the first hidden state of a causal "
                "model depends on no other token: set objective.pooling=mean or last"
            )

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.score(model, batch)[1]

    def score(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "batch outputs"], Loss]:
        """The outputs of the task's layer for each sample, in fp32, and their loss."""
        if batch.labels is None:
            raise ValueError("objective=classify needs labels, and this batch has none: set data=labelled")
        texts, output = self._encode(model, batch)
        scores = model.heads[self.head](texts).float()
        losses, correct = self._losses(scores, batch.labels)
        total = losses.sum()
        metrics = {"ce": total.detach()}
        if correct is not None:
            metrics["accuracy"] = correct.float().sum()
        return scores, loss_with_auxiliary(total, len(batch), metrics, output, batch, batch.auxiliary_ratio)

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[int, int | Tensor]:
        """Numbers of texts, and of their tokens."""
        return len(batch), real_tokens(batch)

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The distribution over the classes of each text, of which the first `context` tokens are read."""
        texts, _ = self._encode(model, batch.columns(model.context))
        return Predictions(texts, model.heads[self.head], texts.new_ones(len(texts)))

    def _encode(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "batch dim"], Output]:
        """Returns what the output layer reads for each text, and the model's output with its hidden states."""
        output = model(Batch(tokens=batch.tokens, real=batch.real, segments=batch.segments, samples=batch.samples))
        texts = pool(output.hidden, batch.real, self.pooling)
        return texts if self.row_scale is None else self.row_scale * F.rms_norm(texts, texts.shape[-1:]), output

    def _losses(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the loss of each sample, and which share of its labels is predicted correctly, both of shape (rows,).

        The share is True or False for single labels, a fraction of the classes for several labels, and None (instead of
        a tensor) for a quantity. scores (rows, classes) are the outputs of the head, before softmax or sigmoid.
        """
        if self.kind == "single":
            return F.cross_entropy(scores, labels, reduction="none"), scores.argmax(1) == labels
        if self.kind == "multi":
            each = F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
            return each.mean(1), ((scores > 0) == (labels > 0.5)).float().mean(1)
        return (scores[:, 0] - (labels.float() - self.center) / self.scale).square(), None

    def scorer(self) -> ClassifyScorer:
        return ClassifyScorer(self)


class ClassifyScorer(Scorer):
    """Metrics of held-out samples; also a confusion matrix and a row per class where samples have one class each."""

    def __init__(self, objective: Classify) -> None:
        super().__init__(objective)
        self.classify, self.table = objective, SampleTable()

    def add(self, model: Model, batch: Batch) -> Loss:
        scores, loss = self.classify.score(model, batch)
        assert batch.labels is not None
        self.table.add(batch.samples, scores=scores, labels=batch.labels)
        return loss

    def compute(self) -> dict[str, float]:
        """Metrics by name; which ones depends on whether a label is one class, several classes or a quantity."""
        table = self.table.gather()
        scores, labels = table["scores"], table["labels"]
        if self.classify.kind == "single":
            return single_label_metrics(scores, labels)
        if self.classify.kind == "multi":
            return multi_label_metrics(scores, labels.float())
        return regression_metrics(scores[:, 0] * self.classify.scale + self.classify.center, labels.float())

    def confusion(self) -> Tensor | None:
        """The confusion matrix (see `confusion_matrix`); None where samples do not have one class each."""
        if self.classify.kind != "single":
            return None
        table = self.table.gather()
        return confusion_matrix(table["scores"].argmax(1), table["labels"], len(self.classify.names))

    def report(self) -> list[ClassRow]:
        """A row for each class; none where samples do not have one class each."""
        confusion = self.confusion()
        return [] if confusion is None else class_rows(confusion, self.classify.names)


def pool(
    hidden: Float[Tensor, "batch time dim"], real: Bool[Tensor, "batch time"] | None, pooling: Pooling
) -> Float[Tensor, "batch dim"]:
    """One vector per row (see `Classify`), which does not depend on padding."""
    if pooling == "class-token":
        return hidden[:, 0]
    if real is None:
        return hidden[:, -1] if pooling == "last" else hidden.mean(1)
    lengths = real.sum(1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return (hidden * real[..., None]).sum(1) / lengths[:, None]
