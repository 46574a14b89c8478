"""The final number of an answer, and a model that is asked for it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
import torch
from evals.subjects import subject_of, subject_on_tables, table
from retention.toys import Language
from tables import folder

from kleiber.data.chat import Turn, encode_conversations
from kleiber.data.instruct import Instruct, InstructCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.evals import exact_match as exact_match_module
from kleiber.evals.evaluation import proportion_score
from kleiber.evals.exact_match import ExactMatch, best_constant, final_number, match_answers, numeric_questions
from kleiber.models.transformer import Transformer
from kleiber.objectives.sft import SFT
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72"),
        ("#### 1,000", "1000"), ("#### $-3.50 in all", "-3.5"), ("It costs 5 and 7.", "7"), ("... is 10,000.", "10000"),
        ("first #### 3 then #### 4 of 9", "4"), ("none", None), ("12 ####", None), ("1.0", "1"),
        ("The scores are 1,2,3", "3"), ("from 2010-2015", "2015"), ("3-1", "1"), ("1,234,567.5", "1234567.5"),
        ("it fell to -4", "-4"), ("#### -.5", "-0.5"), ("in 12,3456", "3456"),
    ],
)  # fmt: skip
def test_final_numbers(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.slow
def test_a_model_that_learnt_two_answers_matches_those_and_no_third() -> None:
    torch.manual_seed(0)
    net, tokenizer = Transformer(272, depth=1, width=32, context=32), Bytes()
    questions, answers = ["a?", "b?", "longer?"], ["x #### 12", "#### 7", "#### 3"]
    prompts = [[256, *question.encode()] for question in questions]
    rows = [prompts[i] + [*answers[i].encode(), 256] for i in range(2)]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    corpus = InstructCorpus("toy", "", "", tokenizer, Samples(), {}, num_answers=2)
    for _ in range(60):
        for row in rows:
            ids = torch.tensor([row])
            weights = (torch.arange(len(row)) >= 3).float()[None]
            SFT(corpus)(net, Batch(ids, weights=weights)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = match_answers(net, tokenizer, prompts, answers, max_new_tokens=12)
    assert found.texts[:2] == answers[:2]
    assert found.correct == [True, True, False]
    with pytest.raises(ValueError, match="of 1 answers 1 contain none"):
        match_answers(net, tokenizer, prompts[:1], ["no"])


@pytest.mark.slow
def test_a_run_is_asked_its_held_out_questions(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    table = [{"question": f"{i}?", "answer": f"#### {i}" if i else "nothing"} for i in range(4)]
    corpus = Instruct(folder(tmp_path / "t", train=table, validation=table)).prepare(64)
    torch.manual_seed(0)
    net = Transformer(272, depth=1, width=32, context=64)
    subject = subject_of(net, corpus, SFT(corpus))
    assert ExactMatch().evaluate(subject).scores["t"]["accuracy"] == proportion_score([0, 0, 0])
    monkeypatch.setattr(exact_match_module, "continuations", answers_right(corpus))
    scores = ExactMatch().evaluate(subject).scores["t"]
    assert scores["accuracy"] == proportion_score([1, 1, 1]) and scores["constant"].value == pytest.approx(1 / 3)
    assert best_constant([Decimal(2), Decimal(3), Decimal("2.0"), Decimal(5)]).value == 0.5
    corpus.validation = {"t": corpus.validation["t"], "u": corpus.validation["t"].first(1)}
    scores = ExactMatch(tokens=1).evaluate(subject_of(net, corpus, SFT(corpus))).scores
    assert scores["all"]["accuracy"].n == scores["t"]["accuracy"].n + scores["u"]["accuracy"].n
    corpus.validation = {"text": Language(1, rows=3)}
    with pytest.raises(ValueError, match=r"--evals exact_match.* text "):
        ExactMatch().evaluate(subject_of(net, corpus, SFT(corpus)))


def test_a_table_of_conversations_asks_what_training_on_it_asks(monkeypatch) -> None:
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(3)]
    chat = [{"role": role, "content": text} for role, text in (("user", "1?"), ("assistant", "1"), ("user", "2?"))]
    torch.manual_seed(0)
    subject = subject_on_tables(Transformer(272, depth=1, width=32, context=64), t=rows, u=[{"messages": chat}])
    assert all(map(ExactMatch().accepts, subject.data)) and not ExactMatch().accepts(table("v", [{"text": "1"}]))
    monkeypatch.setattr(exact_match_module, "continuations", answers_right(None))
    scores = ExactMatch().evaluate(subject).scores
    assert scores["t"]["accuracy"] == proportion_score([True] * 3) and scores["u"]["accuracy"].n == 1
    prompts, answers = numeric_questions(subject, subject["t"])
    dialog = [Turn("user", "1?"), Turn("assistant", "#### 1")]
    ids = [*prompts[1], *Bytes().encode(answers[1]), Bytes.eos]
    assert ids == encode_conversations([dialog], Bytes())[0].ids.tolist()


def answers_right(corpus):
    """In place of a model: the digits of the question, after some thought."""

    def continuations(net, prompts, tokens, eos):
        return [[*b"so #### ", *(i for i in prompt if 48 <= i < 58)] for prompt in prompts]

    return continuations
