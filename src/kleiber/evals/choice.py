"""Multiple choice by likelihood: of several endings of one context the model takes the one it finds likeliest.

Two scores, as they differ: the plain log-probability, and that over the bytes of the ending, which does not favour
short ones (Brown et al. 2020, arXiv:2005.14165, section 2.4, divides by tokens). Nothing is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kleiber.nn.loss import log_probs
from kleiber.types import Batch


@dataclass(frozen=True)
class Question:
    """Token ids of a context (at least one) and of its endings, their sizes in bytes, and which ending is right."""

    context: list[int]
    endings: list[list[int]]
    num_bytes: list[int]
    right: int


@torch.no_grad()
def choose(model: Any, questions: Sequence[Question], rows: int = 16) -> dict[str, float]:
    """accuracy and accuracy_per_byte over the questions. Contexts that are too long lose their beginning.

    Raises ValueError for an ending that alone exceeds model.context.
    """
    was_training = model.training
    model.eval()
    jobs = [(question.context, ending) for question in questions for ending in question.endings]
    try:
        order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i][0]) - len(jobs[i][1]))
        found = torch.empty(len(jobs), dtype=torch.float64)
        for at in range(0, len(order), rows):
            chosen = order[at : at + rows]
            found[chosen] = ending_log_probs(model, [jobs[i] for i in chosen]).double().cpu()
    finally:
        model.train(was_training)
    plain = per_byte = 0
    for question, scores in zip(questions, found.split([len(q.endings) for q in questions]), strict=True):
        sizes = torch.tensor(question.num_bytes, dtype=torch.float64)
        plain += int(scores.argmax()) == question.right
        per_byte += int((scores / sizes).argmax()) == question.right
    return {"accuracy": plain / len(questions), "accuracy_per_byte": per_byte / len(questions)}


def ending_log_probs(model: Any, jobs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """sum of log p(token | all before) over the ending of each (context, ending), in one pass."""
    longest = max(len(ending) for _, ending in jobs)
    if longest > model.context:
        raise ValueError(f"an ending of {longest} tokens exceeds model.context={model.context}")
    device = next(model.parameters()).device
    whole = [(context + ending)[-model.context - 1 :] for context, ending in jobs]
    width = max(len(row) for row in whole)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in whole], device=device)
    lengths = torch.tensor([len(row) for row in whole], device=device)[:, None]
    ends = torch.tensor([len(ending) for _, ending in jobs], device=device)[:, None]
    place = torch.arange(width, device=device)
    real, marked = place < lengths, (place >= lengths - ends) & (place < lengths)
    hidden = model(Batch(tokens=ids[:, :-1], real=real[:, :-1])).hidden
    marked = marked[:, 1:]
    scores = log_probs(hidden[marked], model.head, ids[:, 1:][marked])
    return scores.new_zeros(len(jobs)).index_add(0, marked.nonzero()[:, 0], scores)
