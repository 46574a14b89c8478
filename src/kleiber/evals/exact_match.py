"""Exact match of final answers: the model continues a question greedily, and its final number is compared.

For chains of thought as in GSM8K, whose answers end in `#### number`. Words around the number are not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch

from kleiber.evals import Subject
from kleiber.models.generate import generate
from kleiber.types import Json
from kleiber.types.contracts import Tokenizer
from kleiber.types.model import Model

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
MARK = "####"


@dataclass(frozen=True)
class ExactMatch:
    """`right` of `total` questions; `texts` are the answers that the model gave."""

    right: int
    total: int
    texts: list[str]

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)


def evaluate(subject: Subject) -> Json:
    """accuracy, standard_error, right and questions of each domain, over its held-out conversations (the first ones of
    `subject.tokens` tokens together) whose last answer names a number.

    Raises ValueError for data that is no conversation, and for conversations of which no answer names a number.
    """
    found = {}
    tokenizer = subject.corpus.tokenizer
    for domain, samples in subject.corpus.validation.items():
        held = samples.first(subject.tokens)
        questions = [question for question in map(held.question, range(len(held))) if question is not None]
        if not questions:
            raise ValueError(f"exact_match asks questions, and {domain} has none: take a run of data=instruct")
        asked = [(prompt, tokenizer.decode(answer)) for prompt, answer in questions]
        asked = [(prompt, answer) for prompt, answer in asked if final_number(answer) is not None]
        prompts, answers = [prompt for prompt, _ in asked], [answer for _, answer in asked]
        match = exact_match(subject.model, tokenizer, prompts, answers, rows=subject.rows)
        found[domain] = {
            "accuracy": match.accuracy,
            "standard_error": match.standard_error,
            "right": match.right,
            "questions": match.total,
        }
    return found


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or without that mark the last number; None where there is none.

    Thousands separators are left out, so that 1,000 is 1000 and 1000.00.
    """
    _, mark, after = text.rpartition(MARK)
    found = NUMBER.findall(after)
    if not found:
        return None
    return Decimal((found[0] if mark else found[-1]).replace(",", ""))


def exact_match(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    answers: Sequence[str],
    max_new_tokens: int = 256,
    rows: int = 16,
) -> ExactMatch:
    """Greedy continuations of the prompts, cut at the end of text, against the final numbers of `answers`.

    Prompts of equal length are continued together, `rows` at once. Raises ValueError for no prompt at all, and for an
    answer without a number.
    """
    wanted = [final_number(answer) for answer in answers]
    if not prompts or None in wanted:
        raise ValueError(f"{len(prompts)} questions, {wanted.count(None)} of whose answers name no number")
    texts = [""] * len(prompts)
    device = next(model.parameters()).device
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, members in by_length.items():
        for at in range(0, len(members), rows):
            chosen = members[at : at + rows]
            ids = torch.tensor([prompts[i] for i in chosen], device=device)
            made = generate(model, ids, max_new_tokens, temperature=0.0)[:, length:].tolist()
            for i, row in zip(chosen, made, strict=True):
                end = row.index(tokenizer.eos) if tokenizer.eos in row else len(row)
                texts[i] = tokenizer.decode(row[:end])
    right = sum(final_number(text) == number for text, number in zip(texts, wanted, strict=True))
    return ExactMatch(right, len(prompts), texts)
