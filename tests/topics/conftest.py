"""What tests of topics share: texts, a cache of their own, and evaluations that declare all metrics they return."""

from importlib import import_module
from pathlib import Path

import pytest
from data.conftest import bpe, cache, lines, text, tiny  # noqa: F401
from evals.conftest import checked

from kleiber.evals.evaluation import Evaluation


@pytest.fixture(autouse=True)
def declared_metrics(monkeypatch, request):
    topic = import_module(f"kleiber_topics.{request.path.relative_to(Path(__file__).parent).parts[0]}")
    for each in (getattr(topic, name) for name in topic.EXPORTS):
        if isinstance(each, type) and issubclass(each, Evaluation):
            monkeypatch.setattr(each, "evaluate", checked(each.evaluate))
