"""The final number of an answer, and a model that is asked for it."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch

from kleiber.data.tokenizer import Bytes
from kleiber.evals.exact_match import exact_match, final_number
from kleiber.models.transformer import Transformer
from kleiber.objectives.sft import SFT
from kleiber.types import Batch


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72"),
        ("#### 1,000", "1000"), ("#### $-3.50 in all", "-3.5"), ("It costs 5 and 7.", "7"), ("... is 10,000.", "10000"),
        ("first #### 3 then #### 4 of 9", "4"), ("none", None), ("12 ####", None), ("1.0", "1"),
    ],
)  # fmt: skip
def test_final_numbers(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_a_model_that_learnt_two_answers_matches_those_and_no_third() -> None:
    torch.manual_seed(0)
    net, tokenizer = Transformer(272, depth=1, width=32, context=32), Bytes()
    questions, answers = ["a?", "b?", "longer?"], ["x #### 12", "#### 7", "#### 3"]
    prompts = [[256, *question.encode()] for question in questions]
    rows = [prompts[i] + [*answers[i].encode(), 256] for i in range(2)]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    corpus = type("Toy", (), {"name": "toy", "num_answers": 2})
    for _ in range(60):
        for row in rows:
            ids = torch.tensor([row])
            weights = (torch.arange(len(row)) >= 3).float()[None]
            SFT(corpus)(net, Batch(ids, weights=weights)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = exact_match(net, tokenizer, prompts, answers, max_new_tokens=12)
    assert found.texts[:2] == answers[:2]
    assert (found.right, found.total) == (2, 3)
    assert found.standard_error == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5)
    with pytest.raises(ValueError, match="1 of whose answers name no number"):
        exact_match(net, tokenizer, prompts[:1], ["no"])
