"""An evaluation: how sure a model is of the next token, which a loss alone does not show."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from kleiber.evals.evaluation import Evaluation, Results, Scores, Subject, mean_score
from kleiber.objectives import next_token_inputs
from kleiber.types.score import Metric, Metrics


class Confidence(Evaluation):
    """Mean probability of the most probable token, and how often it is the right one, by data set.

    data  names or paths of data sets; null: those of the command or of the run
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "confidence": Metric("probability of the most probable token", "none"),
        "accuracy": Metric("accuracy of the most probable token", "higher"),
    }

    def __init__(self, data: Sequence[str] | None = None) -> None:
        self.data = data

    @torch.no_grad()
    def evaluate(self, subject: Subject) -> Results:
        """The scores of each data set, with intervals over its rows."""
        scores: dict[str, Scores] = {}
        for name in subject.domains:
            sure, right = list[float](), list[float]()
            for batch in subject.batches(name, subject.tokens):
                logits = subject.model.head(subject.model(next_token_inputs(batch)).hidden)
                sure += logits.softmax(-1).amax(-1).mean(-1).tolist()
                right += (logits.argmax(-1) == batch.tokens[:, 1:]).float().mean(-1).tolist()
            scores[name] = {"confidence": mean_score(sure), "accuracy": mean_score(right)}
        return Results(scores)
