"""How often a model prefers the answer that people preferred, with bootstrap intervals over held-out pairs.

Each accuracy is compared, pair by pair, with two baselines: choosing the longer answer, and the model before training.
The objective of the run scores the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from kleiber.evals import Subject
from kleiber.types import Json

CONFIDENCE, RESAMPLES = 0.9, 9999
CHUNK = 1 << 20  # resampled numbers in memory at once: those of 10,000 pairs together would take 1.6 GB
ACCURACIES = ("reward_accuracy", "accuracy", "start_accuracy", "longer_accuracy")
DIFFERENCES = {
    "reward_accuracy_less_longer": ("reward_accuracy", "longer_accuracy"),
    "reward_accuracy_less_start": ("reward_accuracy", "start_accuracy"),
    "accuracy_less_longer": ("accuracy", "longer_accuracy"),
    "accuracy_less_start": ("accuracy", "start_accuracy"),
}


@torch.no_grad()
def evaluate(subject: Subject) -> Json:
    """By domain: number of pairs, and {value, lo, hi} of each accuracy and difference with a 90 % bootstrap interval.

    reward_accuracy  share of pairs in which the chosen answer gained more log-probability over the model before
                     training than the rejected one did (d > 0)
    accuracy         share in which the model finds the chosen answer more likely
    start_accuracy   share in which the model before training found the chosen answer more likely
    longer_accuracy  share in which the chosen answer is the longer one

    Ties count 1/2. A reward model has no model before training to compare with: its results are accuracy (the chosen
    answer has the higher reward), longer_accuracy and their difference. Raises ValueError for a run whose objective
    does not compare answers.
    """
    if not subject.objective.compares_answers:
        raise ValueError(
            f"--evals preference scores pairs of answers, which objective={type(subject.objective).__name__} does not "
            "compare: evaluate a run with objective=dpo or objective=reward, and data=preference"
        )
    results = {}
    for domain in subject.domains:
        scorer = subject.objective.scorer()
        for batch in subject.batches(domain):
            scorer.add(subject.model, batch)
        results[domain] = summarize_pairs({name: value.numpy() for name, value in scorer.pairs().items()})
    return results


def summarize_pairs(pairs: Mapping[str, np.ndarray]) -> Json:
    """Means over pairs of each accuracy and of each difference, with percentile bootstrap intervals."""
    columns = {name: pairs[name] for name in ACCURACIES if name in pairs}
    for name, (accuracy, baseline) in DIFFERENCES.items():
        if accuracy in pairs and baseline in pairs:
            columns[name] = pairs[accuracy] - pairs[baseline]
    return {"pairs": len(pairs["accuracy"]), **{name: bootstrap_mean(values) for name, values in columns.items()}}


def bootstrap_mean(values: np.ndarray) -> dict[str, float]:
    """Returns the mean and its bootstrap interval: {value, lo, hi}.

    Every call draws the same resamples of preference pairs, so that metrics of the same pairs can be compared.
    """
    from scipy.stats import bootstrap

    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"value": mean, "lo": mean, "hi": mean}
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, CHUNK // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    ).confidence_interval
    return {"value": mean, "lo": float(interval.low), "hi": float(interval.high)}
