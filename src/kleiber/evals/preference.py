"""Whether a model prefers the answer that people preferred, with bootstrap intervals over held-out pairs.

Each accuracy stands with its differences to two baselines, pair by pair: choosing the longer answer, and the model
before training. The objective of the run scores the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from kleiber.evals import Subject
from kleiber.types import Json

LEVEL, RESAMPLES = 0.9, 9999
CHUNK = 1 << 20  # numbers of resamples that are held at once: all of 10,000 pairs would be 1.6 GB
ACCURACIES = ("reward_accuracy", "accuracy", "start_accuracy", "longer_accuracy")
DIFFERENCES = {
    "reward_accuracy_less_longer": ("reward_accuracy", "longer_accuracy"),
    "reward_accuracy_less_start": ("reward_accuracy", "start_accuracy"),
    "accuracy_less_longer": ("accuracy", "longer_accuracy"),
    "accuracy_less_start": ("accuracy", "start_accuracy"),
}


@torch.no_grad()
def evaluate(subject: Subject) -> Json:
    """By domain: pairs, and {value, lo, hi} of each accuracy and difference, 90 % by a bootstrap over pairs.

    A reward model has no model before it to compare with: of it there are accuracy (the chosen answer has the higher
    reward), longer_accuracy and their difference.

    reward_accuracy   the chosen answer gained more over the model before training (d > 0)
    accuracy          the model finds the chosen answer likelier
    start_accuracy    the model before training found it likelier
    longer_accuracy   the longer answer was chosen; ties count 1/2 everywhere
    Raises ValueError for a run of an objective without pairs.
    """
    if not subject.objective.compares_answers:
        raise ValueError(
            f"preference scores pairs of answers, and objective={type(subject.objective).__name__} has none: "
            "take a run of objective=dpo or objective=reward, data=preference"
        )
    found = {}
    for domain in subject.domains:
        scorer = subject.objective.scorer()
        for batch in subject.batches(domain):
            scorer.add(subject.model, batch)
        found[domain] = with_intervals({name: value.numpy() for name, value in scorer.pairs().items()})
    return found


def with_intervals(pairs: Mapping[str, np.ndarray]) -> Json:
    """Means over pairs and of differences between two columns, each with a percentile bootstrap interval."""
    columns = {name: pairs[name] for name in ACCURACIES if name in pairs}
    columns |= {
        name: pairs[ours] - pairs[theirs] for name, (ours, theirs) in DIFFERENCES.items() if {ours, theirs} <= {*pairs}
    }
    return {"pairs": len(pairs["accuracy"]), **{name: interval(values) for name, values in columns.items()}}


def interval(values: np.ndarray) -> dict[str, float]:
    """{value, lo, hi} of a mean; the same pairs are drawn for every column, and at every call."""
    from scipy.stats import bootstrap

    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"value": mean, "lo": mean, "hi": mean}
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, CHUNK // len(values)),
        confidence_level=LEVEL,
        method="percentile",
        rng=0,
    ).confidence_interval
    return {"value": mean, "lo": float(found.low), "hi": float(found.high)}
