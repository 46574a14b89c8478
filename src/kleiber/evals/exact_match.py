"""Exact match of final answers: the model answers a question greedily, and the final number of its answer is compared.

For chains of thought as in GSM8K, whose answers end in `#### number`. The text around the number is not scored.
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
from kleiber.types.contracts import Samples
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
ANSWER_MARK = "####"


@dataclass(frozen=True)
class ExactMatch:
    """Number of correct answers of a model to `total` questions, and the texts of all its answers."""

    correct: int
    total: int
    texts: list[str]

    @property
    def accuracy(self) -> float:
        """Share of the questions that are answered correctly."""
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)


def evaluate(subject: Subject) -> Json:
    """By domain: accuracy, its standard_error, the number of right answers, and that of questions.

    The questions are the held-out conversations (the first ones, of `subject.tokens` tokens together) whose last answer
    contains a number. Raises ValueError where a domain has no such question.
    """
    results = {}
    for domain, samples in subject.corpus.validation.items():
        prompts, answers = numeric_questions(samples.first(subject.tokens), subject.corpus.tokenizer, domain)
        match = exact_match(subject.model, subject.corpus.tokenizer, prompts, answers, rows=subject.rows)
        results[domain] = {
            "accuracy": match.accuracy,
            "standard_error": match.standard_error,
            "right": match.correct,
            "questions": match.total,
        }
    return results


def numeric_questions(samples: Samples, tokenizer: Tokenizer, domain: str) -> tuple[list[list[int]], list[str]]:
    """Prompts (token ids) and answers (texts) of the conversations whose last answer contains a number.

    Raises ValueError where there are none.
    """
    questions = [question for question in map(samples.question, range(len(samples))) if question is not None]
    if not questions:
        raise ValueError(
            f"--evals exact_match needs conversations, and {domain} has none: evaluate a run with data=instruct"
        )
    prompts, answers = [], []
    for prompt, answer_ids in questions:
        answer = tokenizer.decode(answer_ids)
        if final_number(answer) is not None:
            prompts.append(prompt)
            answers.append(answer)
    if not prompts:
        raise ValueError(f"--evals exact_match: none of the {len(questions)} answers in {domain} contains a number")
    return prompts, answers


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or the last number of a text without that mark; None without a number.

    Thousands separators are removed, so 1,000 equals 1000 and 1000.00.
    """
    _, mark, tail = text.rpartition(ANSWER_MARK)
    numbers = NUMBER.findall(tail)
    if not numbers:
        return None
    return Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))


def exact_match(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    answers: Sequence[str],
    max_new_tokens: int = 256,
    rows: int = 16,
) -> ExactMatch:
    """Compares the final numbers of greedy continuations of the prompts with those of `answers`.

    A continuation ends at the end of text. Prompts of equal length are continued together, `rows` at once. Raises
    ValueError where there is no prompt, and for an answer without a number.
    """
    numbers = [final_number(answer) for answer in answers]
    if not prompts or None in numbers:
        raise ValueError(
            f"exact match needs a question, and a number in every answer; of {len(prompts)} answers "
            f"{numbers.count(None)} contain none"
        )
    texts = [""] * len(prompts)
    device = next(model.parameters()).device
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, members in by_length.items():
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            ids = torch.tensor([prompts[i] for i in batch], device=device)
            continuations = generate(model, ids, max_new_tokens, temperature=0.0)[:, length:].tolist()
            for i, row in zip(batch, continuations, strict=True):
                end = row.index(tokenizer.eos) if tokenizer.eos in row else len(row)
                texts[i] = tokenizer.decode(row[:end])
    correct = sum(final_number(text) == number for text, number in zip(texts, numbers, strict=True))
    return ExactMatch(correct, len(prompts), texts)
