"""Which data an evaluation gets, what it leaves as it was, and what is refused before anything is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evals.subjects import subject_on_tables, table

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Evaluation, Results, Score, Subject
from kleiber.evals.measure import Measurement, language_objective, metrics, plan_measurements, to_json
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.types.contracts import Objective

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


def planned(evaluation: Evaluation, *named: DataSet, training: bool = False) -> list[str]:
    (measurement,) = plan_measurements({"x": evaluation}, model(), Bytes(), [OWN], named, training)
    return [data.name for data in measurement.data]


def test_an_evaluation_gets_the_named_data_that_it_accepts_or_that_of_the_run() -> None:
    both = plan_measurements({"a": Draws(), "b": Pairs()}, model(), Bytes(), [OWN], [PAIRS, TEXT])
    assert [[data.name for data in measurement.data] for measurement in both] == [["text"], ["pairs"]]
    assert planned(Draws()) == ["own"] and planned(Draws(), TEXT) == ["text"]


def test_what_cannot_be_read_is_refused() -> None:
    late, only_causal = Draws(), Draws()
    late.during, only_causal.causal = False, True
    for evaluation, named, message in (
        (Pairs(), (), "good, bad, and got only own"),
        (Pairs(), (TEXT,), "good, bad, and got text"),
        (Draws(), (TEXT, PAIRS), "--data pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(evaluation, *named)
    with pytest.raises(ValueError, match="during training"):
        planned(late, training=True)
    with pytest.raises(ValueError, match="bidirectional"):
        plan_measurements({"x": only_causal}, model(causal=False), Bytes(), [OWN])


def test_measuring_leaves_mode_and_random_numbers_as_they_were() -> None:
    subject = subject_on_tables(model().train(), pairs=[{"good": "a", "bad": "b"}])
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    results = Measurement("x", Pairs(), [PAIRS]).measure(subject)
    assert torch.equal(torch.rand(2), expected) and subject.model.training
    assert metrics("x", results) == {"eval/x/pairs/one": 1.0}
    score = {"value": 1.0, "lo": None, "hi": None, "n": 2}
    assert to_json(results) == {"scores": {"pairs": {"one": score}}, "details": {"list": [1]}}


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
