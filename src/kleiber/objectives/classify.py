"""Classes, several classes or a quantity from a whole text: an output layer of its own on pooled hidden states.

One sample counts one, however long it is. It refuses a class token where the model reads from left to right, since
nothing has been read there yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kleiber.objectives.auxiliary import head_name, rescaled
from kleiber.objectives.classification import ClassRow, confusion_matrix, multi_label, per_class, quantity, single_label
from kleiber.objectives.gathered import Collected
from kleiber.types import Batch, Loss, Output, Predictions

Pooling = Literal["class-token", "last", "mean"]


class Classify:
    """Cross-entropy of a sample's class; for several classes the mean binary one over them; for a quantity the squared
    error in units of the training labels' variance. All in sums over samples; "ce" is the loss in each case.

    pooling  what stands for the text: the first hidden state, that of the last real token, or the mean of all real ones
    """

    likelihood = False

    def __init__(self, corpus: Any, pooling: Pooling = "mean") -> None:
        if not hasattr(corpus, "num_classes"):
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
        self.metric: tuple[str, bool] = (corpus.metric, corpus.metric != "rmse")

    def __call__(self, model: Any, batch: Batch) -> Loss:
        return self.scored(model, batch)[1]

    def scored(self, model: Any, batch: Batch) -> tuple[Float[Tensor, "batch outputs"], Loss]:
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

    @property
    def predictions(self) -> Callable[[Any, Batch], Predictions]:
        """The distribution over single classes of each text, cut to the context; each counts one.

        Several classes and quantities are no draws from one distribution: for those there is no such attribute.
        """
        if self.kind != "single":
            raise AttributeError(f"{self.kind} labels have no distribution over outcomes")
        return self._predictions

    def _predictions(self, model: Any, batch: Batch) -> Predictions:
        texts, _ = self._read(model, batch.map(lambda t: t[:, : model.context] if t.dim() == 2 else t))
        return Predictions(texts, model.heads[self.head], texts.new_ones(len(texts)))

    def _read(self, model: Any, batch: Batch) -> tuple[Float[Tensor, "batch dim"], Output]:
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


class ClassifyScorer:
    """The metrics of `objectives.classification` over one pass; `report` and `confusion` for single labels."""

    def __init__(self, objective: Classify) -> None:
        self.objective = objective
        self.collected = Collected()

    def add(self, model: Any, batch: Batch) -> Loss:
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
