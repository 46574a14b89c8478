"""How often a model prefers the answer that people preferred, with bootstrap intervals over held-out pairs.

Each accuracy is compared, pair by pair, with two baselines: choosing the longer answer, and the model before training.
The objective of the run scores the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from kleiber.data.evaluation_sets import DataSet
from kleiber.evals.evaluation import Evaluation, Results, Scores, Subject, mean_score, proportion_score
from kleiber.types.score import Metric, Metrics

ACCURACIES = ("reward_accuracy", "accuracy", "start_accuracy", "longer_accuracy")
DIFFERENCES = {
    "reward_accuracy_less_longer": ("reward_accuracy", "longer_accuracy"),
    "reward_accuracy_less_start": ("reward_accuracy", "start_accuracy"),
    "accuracy_less_longer": ("accuracy", "longer_accuracy"),
    "accuracy_less_start": ("accuracy", "start_accuracy"),
}


class Preference(Evaluation):
    """Accuracies on pairs of answers, which the objective of the run scores."""

    metrics: ClassVar[Metrics] = {
        "accuracy": Metric("accuracy of preferences", "higher"),
        "reward_accuracy": Metric("reward accuracy", "higher"),
        "start_accuracy": Metric("accuracy of preferences before training", "none"),
        "longer_accuracy": Metric("accuracy of choosing the longer answer", "none"),
        "accuracy_less_longer": Metric("accuracy of preferences less that of choosing the longer answer", "higher"),
        "accuracy_less_start": Metric("accuracy of preferences less that before training", "higher"),
        "reward_accuracy_less_longer": Metric("reward accuracy less that of choosing the longer answer", "higher"),
        "reward_accuracy_less_start": Metric("reward accuracy less the accuracy before training", "higher"),
    }

    def evaluate(self, subject: Subject) -> Results:
        """Scores of the run's validation pairs: each accuracy and difference.

        reward_accuracy  share of pairs in which the chosen answer gained more log-probability over the model before
                         training than the rejected one did (d > 0)
        accuracy         share in which the model finds the chosen answer more likely
        start_accuracy   share in which the model before training found the chosen answer more likely
        longer_accuracy  share in which the chosen answer is the longer one

        Ties count 1/2. A reward model has no model before training to compare with: its results are accuracy (the
        chosen answer has the higher reward), longer_accuracy and their difference. Raises ValueError for a run whose
        objective does not compare answers.
        """
        if not subject.objective.compares_answers:
            raise ValueError(
                "--evals preference scores pairs of answers, which "
                f"objective={type(subject.objective).__name__} does not compare: evaluate a run with objective=dpo or "
                "objective=reward, and data=preference"
            )
        scores: dict[str, Scores] = {}
        for domain in subject.domains:
            scorer = subject.objective.scorer()
            with torch.no_grad():
                for batch in subject.batches(domain):
                    scorer.add(subject.model, batch)
            scores[domain] = pair_scores({name: value.numpy() for name, value in scorer.pairs().items()})
        return Results(scores)

    def accepts(self, data: DataSet) -> bool:
        """Only the data of the run."""
        return data.of_run


def pair_scores(pairs: Mapping[str, np.ndarray]) -> Scores:
    """Means over pairs of each accuracy and of each difference, with their intervals."""
    scores = {name: proportion_score(pairs[name]) for name in ACCURACIES if name in pairs}
    for name, (accuracy, baseline) in DIFFERENCES.items():
        if accuracy in pairs and baseline in pairs:
            scores[name] = mean_score(pairs[accuracy] - pairs[baseline])
    return scores
