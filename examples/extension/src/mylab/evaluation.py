"""An evaluation: how sure a model is of the next token, which a loss alone does not tell."""

from collections.abc import Sequence

import torch

from kleiber.evals.evaluation import Evaluation, Results, Scores, Subject, mean_score
from kleiber.objectives.clm import next_token_inputs


class Confidence(Evaluation):
    """Mean probability of the most probable token, by data set.

    data  names or paths of data sets; null: those of the command or of the run
    """

    causal = True

    def __init__(self, data: Sequence[str] | None = None) -> None:
        self.data = data

    @torch.no_grad()
    def evaluate(self, subject: Subject) -> Results:
        """The score "confidence" of each data set, with an interval over its rows."""
        scores: dict[str, Scores] = {}
        for name in subject.domains:
            rows: list[float] = []
            for batch in subject.batches(name, subject.tokens):
                logits = subject.model.head(subject.model(next_token_inputs(batch)).hidden)
                rows += logits.softmax(-1).amax(-1).mean(-1).tolist()
            scores[name] = {"confidence": mean_score(rows)}
        return Results(scores)
