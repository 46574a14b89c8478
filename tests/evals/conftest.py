"""Every evaluation that a test here runs declares all metrics that it returns."""

import pytest

from kleiber import evals
from kleiber.evals.evaluation import Evaluation, Results, Subject
from kleiber.types.score import find_metric


def checked(original):
    """An `evaluate` that fails for a metric without unit, direction and label."""

    def evaluate(self: Evaluation, subject: Subject) -> Results:
        results = original(self, subject)
        scores = {metric: score for of_data in results.scores.values() for metric, score in of_data.items()}
        undeclared = [name for name, score in scores.items() if not score.label and not find_metric(self.metrics, name)]
        assert undeclared == [], f"{type(self).__name__}.metrics declares {sorted(self.metrics)}"
        return results

    return evaluate


@pytest.fixture(autouse=True)
def declared_metrics(monkeypatch):
    for name in evals.EXPORTS:
        monkeypatch.setattr(getattr(evals, name), "evaluate", checked(getattr(evals, name).evaluate))
