"""Planted finders: a model that looks up the value is always right, one that reads only the end finds near needles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.routing.moe_text import Rows
from torch import nn

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.evals.measure import explain_refusal
from kleiber.nn.heads import LMHead
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model
from kleiber_topics.recall.needle import Needle, answer
from kleiber_topics.recall.recall import Recall

RECALL = Recall(distractors=3, lengths=[16, 32], keys=16, values=16)


class Finder(Model):
    """Predicts what followed the last token the last time, within the last `reach` tokens; else token 0."""

    vocab_size = width = 272
    context = 64

    def __init__(self, reach: int = 100) -> None:
        super().__init__()
        self.reach, self.head = reach, LMHead(nn.Parameter(torch.eye(272)), multiplier=50.0)

    def forward(self, batch: Batch, caches: object = None) -> Output:
        guesses = []
        for row in batch.tokens.tolist():
            places = [i for i in range(max(0, len(row) - 1 - self.reach), len(row) - 1) if row[i] == row[-1]]
            guesses.append(row[places[-1] + 1] if places else 0)
        one_hot = nn.functional.one_hot(torch.tensor(guesses), 272).float()
        return Output(one_hot[:, None].expand(-1, batch.tokens.shape[1], -1))


def subject(model: Model, **options: object) -> Subject:
    held_out = Recall(**{**vars(RECALL), **options}).prepare(64).validation["recall"]
    return Subject(model, Bytes(), CLM(), CLM(), [DataSet("recall", lambda: held_out)], rows=5)


def test_who_looks_it_up_is_always_right():
    results = Needle(rows=12).evaluate(subject(Finder()))
    scores = results.scores["recall"]
    assert all(score.value == 1 for name, score in scores.items() if name.endswith("accuracy"))
    assert all(score.value < 1e-6 for name, score in scores.items() if name.endswith("loss"))
    assert scores["accuracy"].n == scores["length32/depth0.25/loss"].n == 12
    assert scores["accuracy"].lo == scores["length32/depth0.25/accuracy"].lo == pytest.approx(0.05 ** (1 / 12))
    assert len(scores) == 2 * (1 + 2 + 10) and len(results.details["recall"]) == 10


def test_who_reads_the_end_alone_finds_only_what_is_there():
    scores = Needle(depths=[0.0, 0.5, 1.0], rows=8).evaluate(subject(Finder(reach=12))).scores["recall"]
    found = {cell: scores[f"{cell}/accuracy"].value for cell in ("length16/depth0.5", "length32/depth0.5")}
    assert found == {"length16/depth0.5": 1, "length32/depth0.5": 0}
    assert scores["length32/accuracy"].value == pytest.approx(1 / 3) and scores["length16/accuracy"].value < 0.7
    assert scores["accuracy"].value == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_the_keys_have_their_effect():
    case = subject(Finder())
    scores = Needle(lengths=[9, 40], depths=[0.1], rows=3).evaluate(case).scores["recall"]
    assert [name for name in scores if "depth" in name and "loss" in name] == [
        "length8/depth0.1/loss", "length40/depth0.1/loss",
    ]  # fmt: skip
    assert scores["accuracy"].n == 3


def test_the_loss_and_the_answer_are_those_of_the_last_token():
    tokens = torch.tensor([[5, 7, 9, 5, 7], [5, 7, 9, 5, 8]])
    found, losses = answer(Finder(), Batch(tokens))
    assert found.tolist() == [1, 0] and losses[0] < 1e-6 and losses[1] == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize(("lengths", "limit"), [([6], ">= 8"), ([64], "<= 63")])
def test_haystacks_that_do_not_fit_are_refused(lengths, limit):
    with pytest.raises(ValueError, match=rf"evals\.needle\.lengths={lengths[0]} must.*{limit}"):
        Needle(lengths=lengths).evaluate(subject(Finder()))


def test_only_haystacks_are_accepted():
    plain = DataSet("recall", lambda: Recall().prepare(64).validation["recall"])
    text = DataSet("text", lambda: Rows(0, 15))
    assert [Needle().accepts(data) for data in (*subject(Finder()).data, plain, text)] == [True, False, False]
    assert "rows with haystacks" in explain_refusal("needle", Needle(), text)
    with pytest.raises(ValueError, match=r"data\.distractors, and text is none"):
        Needle().evaluate(replace(subject(Finder()), data=[text]))


def test_the_figure_has_every_cell():
    results = Needle(rows=4).evaluate(subject(Finder()))
    (chart,) = Needle().figures({"details": results.details}, None).values()
    (rows,) = chart.to_dict()["datasets"].values()
    assert len(rows) == 10 and all(np.isclose(row["value"], 1) for row in rows)
