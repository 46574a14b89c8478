"""Choices of topics that tests of kleiber use; these tests are skipped where the folder of a topic was deleted."""

from collections.abc import Iterable
from importlib.util import find_spec

import pytest

TOPICS = {
    "data=arithmetic": "reasoning", "data=canaries": "memorization", "data=counterfactual": "bias",
    "data=generated": "collapse", "data=instruct_sets": "instructions", "data=judged": "judging",
    "data=recall": "recall", "data=reweighted": "bias", "data=trigger": "interpretability",
    "evals=memorization": "memorization", "evals=retrieval": "retrieval", "objective=equalized": "bias",
    "study=transfer": "transfer",
}  # fmt: skip


def missing_topics(overrides: Iterable[str]) -> list[str]:
    """Returns the topics of the choices among the overrides that are not in this checkout."""
    topics = [TOPICS[word] for word in overrides if word in TOPICS]
    return [topic for topic in topics if find_spec(f"kleiber_topics.{topic}") is None]


def skip_without_topics(*overrides: str) -> None:
    """Skips a test with a choice of a topic that is not in this checkout."""
    missing = missing_topics(word for text in overrides for word in text.split())
    if missing:
        pytest.skip(f"the topic {missing[0]} is not here")
