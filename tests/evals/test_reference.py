"""References of classifiers: the largest class, and a linear model of words."""

import builtins
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evals.subjects import subject_of

from kleiber.data.labelled import Labelled
from kleiber.evals import Reference
from kleiber.objectives.classify import Classify
from kleiber.objectives.clm import CLM
from kleiber.types.model import Model

WORDS = ("red", "green", "blue")


class Nothing(Model):
    """A model that no reference may use."""

    causal = True

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=torch.device("cpu"))


def corpus(folder, labels):
    """Rows whose words decide their label, which is WORDS[i % 3] in a sentence of words without meaning."""
    random = np.random.default_rng(0)
    for split, count in (("train", 90), ("validation", 30)):
        rows = [
            {"text": " ".join([*random.choice(["a", "of", "the"], 6), WORDS[i % 3]]), "label": labels(i, random)}
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Labelled(path=str(folder)).prepare(64)


def scores(folder, labels, **keys):
    data = corpus(folder, labels)
    (result,) = Reference(**keys).evaluate(subject_of(Nothing(), data, Classify(data))).scores.values()
    return {name: score.value for name, score in result.items()}


def test_words_decide_a_class_and_the_largest_class_has_its_share(tmp_path, cache_dir):
    values = scores(tmp_path, lambda i, random: int(i % 3 == 0))
    assert values["tfidf/accuracy"] == 1 and values["tfidf/f1"] == 1
    assert values["majority/accuracy"] == pytest.approx(2 / 3) and values["majority/mcc"] == 0


def test_a_quantity_has_its_mean_and_ridge_regression(tmp_path, cache_dir):
    values = scores(tmp_path, lambda i, random: (i % 3) + 0.1 * float(random.normal()))
    assert values["tfidf/pearson"] > 0.95 > values["majority/pearson"] == 0


def test_each_key_has_an_effect(tmp_path, cache_dir):
    """Which of two words stands first is in pairs of words alone; a strong penalty keeps all weights near zero."""

    def order(i, random):
        return int(i % 2)

    for split, count in (("train", 80), ("validation", 20)):
        rows = [{"text": "up down" if order(i, None) else "down up", "label": order(i, None)} for i in range(count)]
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = Labelled(path=str(tmp_path)).prepare(64)
    subject = subject_of(Nothing(), data, Classify(data))

    def measured(**keys):
        (result,) = Reference(**keys).evaluate(subject).scores.values()
        return result["tfidf/accuracy"].value, result["tfidf/ece"].value

    assert measured()[0] == 1 and measured(ngrams=1)[0] == pytest.approx(0.5)
    assert measured(inverse=100.0)[1] < measured(inverse=0.01)[1]


def test_another_objective_and_a_missing_library_are_refused(tmp_path, cache_dir, monkeypatch):
    data = corpus(tmp_path, lambda i, random: i % 3)
    with pytest.raises(ValueError, match="objective=CLM"):
        Reference().evaluate(subject_of(Nothing(), data, CLM()))
    load = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: load("no." + name if name.startswith("sklearn") else name, *rest)
    )
    with pytest.raises(ValueError, match=r"kleiber\[reference\]"):
        Reference().evaluate(subject_of(Nothing(), data, Classify(data)))
