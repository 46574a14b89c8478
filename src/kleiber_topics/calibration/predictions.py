"""The predictions of a model on classes, questions and next tokens, at any temperature, and the best temperature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.types import Batch, Model, Objective
from kleiber_topics.calibration.measures import Outcomes

LOGITS = 1 << 22  # logits in memory at once
NEWTON_STEPS = 50
TEMPERATURES = 0.01, 1000.0  # least and greatest: where all predictions are right, the best one is 0


@dataclass(frozen=True)
class Predicted:
    """Distributions over outcomes, softmax(head(hidden) / temperature), and the right outcome of each.

    cluster  number of the sample that each is from
    """

    hidden: Float[Tensor, "rows dim"]
    head: Callable[[Tensor], Tensor]
    labels: Int[Tensor, "rows"]
    cluster: Int[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.labels)

    def half(self, odd: bool) -> Predicted:
        """The items of every second cluster, from the first or from the second one on."""
        chosen = torch.from_numpy(self.cluster % 2 == int(odd))
        return Predicted(self.hidden[chosen], self.head, self.labels[chosen], self.cluster[chosen.numpy()] // 2)

    def logits(self) -> Iterator[tuple[Float[Tensor, "_ classes"], Int[Tensor, "_"]]]:
        """Logits in double precision and labels, in chunks of items."""
        width = self.head(self.hidden[:1]).shape[-1]
        size = max(1, LOGITS // width)
        for states, labels in zip(self.hidden.split(size), self.labels.split(size), strict=True):
            yield self.head(states).double(), labels

    @torch.inference_mode()
    def outcomes(self, temperature: float = 1.0) -> Outcomes:
        """Confidence and correctness of each prediction at a temperature.

        Where several outcomes are the most probable, a random choice among them is right with probability 1 / n.
        """
        columns: list[Tensor] = []
        for logits, labels in self.logits():
            log_p = (logits / temperature).log_softmax(-1)
            p, right = log_p.exp(), log_p.gather(1, labels[:, None]).squeeze(1)
            best = log_p.max(-1).values
            ties = (log_p == best[:, None]).sum(-1)
            correct = (right == best).double() / ties
            brier = p.square().sum(-1) - 2 * right.exp() + 1
            columns.append(torch.stack([best.exp(), correct, brier, -right]).cpu())
        confidence, correct, brier, nats = torch.cat(columns, 1).numpy()
        return Outcomes(confidence, correct, brier, nats, self.cluster)

    @torch.inference_mode()
    def fit_temperature(self) -> float:
        """The temperature of the least negative log-likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2).

        By Newton's method in 1 / temperature, in which the negative log-likelihood is convex. Between .01 and 1000: it
        has no minimum where all predictions are right.
        """
        inverse, (lowest, highest) = 1.0, (1 / TEMPERATURES[1], 1 / TEMPERATURES[0])
        for _ in range(NEWTON_STEPS):
            slope = curvature = 0.0
            for logits, labels in self.logits():
                p = (logits * inverse).softmax(-1)
                finite = torch.where(p > 0, logits, 0.0)
                mean = (p * finite).sum(-1)
                slope += float((mean - logits.gather(1, labels[:, None]).squeeze(1)).sum())
                curvature += float(((p * finite.square()).sum(-1) - mean.square()).sum())
            change = -slope / curvature if curvature > 0 else -np.sign(slope) * inverse
            step = float(np.clip(inverse + change, inverse / 2, inverse * 2))
            step = min(max(step, lowest), highest)
            converged = abs(step / inverse - 1) < 1e-9
            inverse = step
            if converged:
                break
        return 1 / inverse


def of_questions(scores: Sequence[Float[np.ndarray, "_"]], labels: Sequence[int]) -> Predicted:
    """The predictions of questions: the softmax over the scores of their answers, in nats.

    Questions may differ in their number of answers.
    """
    widest = max(map(len, scores))
    logits = np.full((len(scores), widest), -np.inf)
    for row, values in zip(logits, scores, strict=True):
        row[: len(values)] = values
    return Predicted(torch.from_numpy(logits), lambda x: x, torch.tensor(labels), np.arange(len(scores)))


@torch.inference_mode()
def of_samples(model: Model, objective: Objective, batches: Iterable[Batch]) -> Predicted:
    """The predictions of an objective on held-out samples: the class of each, or each next token of weight above 0."""
    hidden: list[Tensor] = []
    labels: list[Tensor] = []
    clusters: list[Tensor] = []
    rows, head = 0, None
    for batch in batches:
        predictions = objective.predictions(model, batch)
        head = predictions.head
        targets = batch.labels if objective.class_names else batch.tokens[:, 1:]
        assert targets is not None, "a sample of a classification has a label"
        present = predictions.weights > 0
        number = torch.arange(rows, rows + len(batch), device=targets.device)
        hidden.append(predictions.hidden[present])
        labels.append(targets[present])
        clusters.append((number if present.dim() == 1 else number[:, None].expand(present.shape))[present])
        rows += len(batch)
    assert head is not None, "there is at least one sample"
    _, cluster = np.unique(torch.cat(clusters).cpu().numpy(), return_inverse=True)
    return Predicted(torch.cat(hidden), head, torch.cat(labels), cluster.astype(np.int64))


def has_outcomes(objective: Objective, model: Model) -> bool:
    """Whether an objective predicts classes, or next tokens of which the right ones are in the data."""
    return objective.has_predictions and (bool(objective.class_names) or model.causal)
