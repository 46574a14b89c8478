"""The likeliest ending, against log-probabilities that are computed an ending at a time."""

from __future__ import annotations

import pytest
import torch

from kleiber.evals.choice import Question, choose, ending_log_probs
from kleiber.models.transformer import Transformer
from kleiber.types import Batch


@pytest.fixture
def net() -> Transformer:
    torch.manual_seed(0)
    return Transformer(64, depth=1, width=32, context=24)


def slow(net: Transformer, context: list[int], ending: list[int]) -> float:
    ids = (context + ending)[-25:]
    logits = net.head(net(Batch(torch.tensor([ids[:-1]]))).hidden)[0].log_softmax(-1)
    return sum(logits[-i, ids[-i]].item() for i in range(1, len(ending) + 1))


def test_endings_of_any_length_in_one_pass(net) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(0, 64, (n,), generator=generator).tolist()  # noqa: E731
    jobs = [(draw(a), draw(b)) for a, b in ((1, 1), (5, 9), (20, 4), (40, 3), (1, 24))]
    with torch.no_grad():
        found = ending_log_probs(net, jobs)
        assert found.tolist() == pytest.approx([slow(net, *job) for job in jobs], abs=1e-4)
    with pytest.raises(ValueError, match=r"an ending of 25 tokens exceeds model.context=24"):
        ending_log_probs(net, [([1], [2] * 25)])


def test_both_scores(net) -> None:
    questions = [Question([1, 2, i], [[3], [4, 5, 6], [7, 8]], [1, 9, 2], i % 3) for i in range(12)]
    plain = per_byte = 0
    with torch.no_grad():
        for q in questions:
            scores = torch.tensor([slow(net, q.context, ending) for ending in q.endings])
            plain += int(scores.argmax()) == q.right
            per_byte += int((scores / torch.tensor(q.num_bytes)).argmax()) == q.right
    net.train()
    assert choose(net, questions, rows=5) == {"accuracy": plain / 12, "accuracy_per_byte": per_byte / 12}
    assert net.training
