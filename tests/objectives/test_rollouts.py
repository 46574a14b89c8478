"""Answers depend on seed and prompt alone, and a batch of them gives the log-probabilities of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kleiber.data.instruct import Conversations
from kleiber.data.token_files import TokenRows
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.objectives.answer_rewards import Answer
from kleiber.objectives.rollouts import (
    answer_limit,
    draws,
    frozen_log_probs,
    of_all_ranks,
    prompts_of,
    questions_of,
    select_rows,
    to_batch,
    write_answers,
)
from kleiber.types.batch import Batch

PROMPTS = {3: [256, 49, 43], 7: [256, 50], 9: [256, 51, 52, 53]}


def model(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(272, depth=1, width=32, context=32).double()


def conversations() -> Conversations:
    """Sums of unequal length, as rows of bytes."""
    texts = [("1+1=", "2"), ("12+30=", "42"), ("500+500=", "1000")]
    rows = [([256, *prompt.encode()], [*answer.encode(), 256]) for prompt, answer in texts]
    starts = np.cumsum([0, *(len(a) + len(b) for a, b in rows)])
    ids = np.concatenate([np.array(a + b, np.uint16) for a, b in rows])
    marks = np.concatenate([np.repeat([0, 1], [len(a), len(b)]) for a, b in rows]).astype(np.uint8)
    return Conversations(TokenRows(ids, starts), TokenRows(marks, starts), 32, Bytes())


def test_answers_to_a_prompt_are_the_same_beside_others_and_differ_by_seed_and_place():
    together = write_answers(model(), PROMPTS, 3, 6, 256, seed=5)
    for place, (number, prompt) in enumerate(PROMPTS.items()):
        alone = write_answers(model(), {number: prompt}, 3, 6, 256, seed=5)
        assert alone == together[3 * place : 3 * place + 3]
    assert len({tuple(answer.ids) for answer in together}) == len(together)
    assert write_answers(model(), PROMPTS, 3, 6, 256, seed=6) != together
    assert not (draws(0, 1, 2, 50) == draws(0, 2, 2, 50)).any() and 0.4 < draws(0, 1, 100, 50).mean() < 0.6


def test_questions_are_prompts_and_right_answers_in_the_order_of_their_numbers():
    samples = conversations()
    batch = samples.gather(np.array([2, 0]), epoch=1)
    questions = prompts_of([batch], samples)
    assert [*questions] == [3, 5] and questions[5].columns(Bytes()) == {"answer": "1000"}
    assert [bytes(q.prompt[1:]).decode() for q in questions_of(samples)] == ["1+1=", "12+30=", "500+500="]
    assert len(questions_of(samples, 2)) == 2


def test_the_limit_is_twice_the_longest_right_answer_or_what_the_context_has():
    samples = conversations()
    assert answer_limit(samples, 32, None, "objective.tokens") == 10  # "1000" and the end of text, twice
    assert answer_limit(samples, 16, None, "objective.tokens") == 17 - 9
    assert answer_limit(samples, 16, 8, "objective.tokens") == 8
    with pytest.raises(ValueError, match=r"objective\.tokens=9 .* 9 tokens .*=16"):
        answer_limit(samples, 16, 9, "objective.tokens")


def test_rows_of_answers_have_the_log_probabilities_of_each_token():
    net = model()
    answers = [Answer([256, 49], [50, 51], True), Answer([256, 49, 43], [52], False)]
    batch = to_batch(answers, [4, 4], 256, 33)
    assert batch.weights is not None and batch.weights.sum(1).tolist() == [3, 1], "an answer that ends has its end"
    values = frozen_log_probs(net, batch, 1)
    for row, answer in enumerate(answers):
        ids = torch.tensor([*answer.prompt, *answer.ids, *([256] if answer.ended else [])])
        logits = net.head(net(Batch(ids[None, :-1])).hidden)[0].log_softmax(-1)
        wanted = logits[torch.arange(len(ids) - 1), ids[1:]][len(answer.prompt) - 1 :]
        assert values[row][values[row] != 0].tolist() == pytest.approx(wanted.tolist(), abs=1e-12)


def test_selected_rows_are_as_wide_as_they_need_and_one_rank_has_them_all():
    answers = [Answer([256, 49], [50], True), Answer([256] * 20, [50], True)]
    batch = to_batch(answers, [0, 1], 256, 33)
    batch.reference = torch.arange(2 * 2 * (batch.tokens.shape[1] - 1)).view(2, 2, -1).float()
    part = select_rows(batch, torch.tensor([0]))
    assert part.tokens.tolist() == [[256, 49, 50, 256]] and part.reference is not None
    assert part.reference.shape == (1, 2, 3) and part.reference[0, 1, 0] == batch.reference[0, 1, 0]
    assert torch.equal(of_all_ranks(batch).tokens, batch.tokens)
