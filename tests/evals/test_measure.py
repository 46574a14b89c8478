"""Which data an evaluation gets, what it leaves as it was, and what is refused before anything is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from declared_metrics import evaluation_class
from evals.subjects import subject_on_tables, table

from kleiber.config.compose import list_choices
from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Evaluation, Results, Score, Subject
from kleiber.evals.measure import Measurement, language_objective, plan_measurements, scores_by_key, to_json
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.types.contracts import Objective
from kleiber.types.score import Metric, Metrics, find_metric

PAIRS = table("pairs", [{"good": "a", "bad": "b"}])
TEXT = table("text", [{"text": "a"}])
OWN = replace(TEXT, name="own", columns=(), of_run=True)


class Draws(Evaluation):
    """Draws random numbers, in evaluation mode."""

    def evaluate(self, subject: Subject) -> Results:
        torch.rand(3)
        assert not subject.model.training
        return Results({name: {"one": Score(1.0, n=2)} for name in subject.domains}, {"list": [1]})


class Pairs(Draws):
    columns = (("good", "bad"),)


def model(causal: bool = True) -> Transformer:
    return Transformer(Bytes().vocab_size, depth=1, width=32, context=16, causal=causal)


def planned(evaluation: Evaluation, *named: DataSet) -> list[str]:
    (measurement,) = plan_measurements({"x": evaluation}, model(), Bytes(), [OWN], named)
    return [data.name for data in measurement.data]


def test_an_evaluation_gets_the_named_data_that_it_accepts_or_that_of_the_run() -> None:
    both = plan_measurements({"a": Draws(), "b": Pairs()}, model(), Bytes(), [OWN], [PAIRS, TEXT])
    assert [[data.name for data in measurement.data] for measurement in both] == [["text"], ["pairs"]]
    assert planned(Draws()) == ["own"] and planned(Draws(), TEXT) == ["text"]


def test_what_cannot_be_read_is_refused() -> None:
    only_causal = Draws()
    only_causal.causal = True
    for evaluation, named, message in (
        (Pairs(), (), "good, bad, and got only own"),
        (Pairs(), (TEXT,), "good, bad, and got text"),
        (Draws(), (TEXT, PAIRS), "--data pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(evaluation, *named)
    with pytest.raises(ValueError, match="bidirectional"):
        plan_measurements({"x": only_causal}, model(causal=False), Bytes(), [OWN])


def test_measuring_leaves_mode_and_random_numbers_as_they_were() -> None:
    subject = subject_on_tables(model().train(), pairs=[{"good": "a", "bad": "b"}])
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    results = Measurement("x", Pairs(), [PAIRS]).measure(subject)
    assert torch.equal(torch.rand(2), expected) and subject.model.training
    score = Score(1.0, n=2, label="one on pairs")
    assert scores_by_key("x", results) == {"eval/x/pairs/one": score}
    assert to_json(results) == {"scores": {"pairs": {"one": score.to_json()}}, "details": {"list": [1]}}


class Declares(Draws):
    metrics: ClassVar[Metrics] = {
        "one": Metric("first", "lower", "nats"),
        "kind{n}/two": Metric("second of kind {n}", "higher"),
    }
    data_labels: ClassVar[Mapping[str, str]] = {"all": "all data"}

    def evaluate(self, subject: Subject) -> Results:
        metrics = {"one": Score(1.0), "kind3/two": Score(2.0, 1.0, 3.0, 4), "three": Score(3.0)}
        return Results({"pairs": metrics, "all": {"one": Score(1.0, label="mine", better="higher")}, "own": metrics})


def test_scores_get_the_declared_unit_direction_and_label_and_keep_a_label_of_their_own() -> None:
    data = [PAIRS, replace(OWN, label="sums")]
    scores = Measurement("x", Declares(), data).measure(subject_on_tables(model(), pairs=[{"good": "a"}])).scores
    assert scores["pairs"] == {
        "one": Score(1.0, unit="nats", better="lower", label="first on pairs"),
        "kind3/two": Score(2.0, 1.0, 3.0, 4, better="higher", label="second of kind 3 on pairs"),
        "three": Score(3.0, label="three on pairs"),
    }
    assert scores["own"]["one"].label == "first on sums"
    assert scores["all"]["one"] == Score(1.0, label="mine", better="higher")


@pytest.mark.parametrize("name", list_choices("evals"))
def test_every_evaluation_declares_metrics_whose_labels_have_the_parts_of_their_names(name: str) -> None:
    metrics = evaluation_class(name).metrics
    assert metrics or name == "harness", "lm-eval says what its metrics are"
    for pattern, metric in metrics.items():
        example = re.sub(r"{(\w+)}", r"\1", pattern)
        found = find_metric(metrics, example)
        assert found is not None and found.label and not {"{", "}"} & {*found.label}, pattern
        assert set(re.findall(r"{\w+}", metric.label)) <= set(re.findall(r"{\w+}", pattern))


def test_an_evaluation_that_fails_on_its_data_gives_none_during_training() -> None:
    class Fails(Draws):
        def evaluate(self, subject: Subject) -> Results:
            raise ValueError("a row is too long")

    subject = subject_on_tables(model(), pairs=[{"good": "a"}])
    assert Measurement("x", Fails(), []).measure_or_warn(subject) is None
    with pytest.raises(ValueError, match="too long"):
        Measurement("x", Fails(), []).measure(subject)


def test_text_is_read_by_the_objective_of_the_run_or_by_that_of_its_kind_of_model() -> None:
    own = CLM()
    assert language_objective(own, model(), Bytes()) is own
    assert isinstance(language_objective(Objective(), model(), Bytes()), CLM)
    assert isinstance(language_objective(Objective(), model(causal=False), Bytes()), MLM)
