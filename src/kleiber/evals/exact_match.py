"""Exact match of final answers: the model answers a question greedily, and the final number of its answer is compared.

For chains of thought as in GSM8K, whose answers end in `#### number`. The text around the number is not scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch

from kleiber.evals.evaluation import Evaluation, Results, Score, Subject, proportion_score
from kleiber.models.generate import generate
from kleiber.types import Count
from kleiber.types.contracts import Samples
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
ANSWER_MARK = "####"
ROWS = 64  # answered at once


@dataclass(frozen=True)
class Answers:
    """For each question, whether a model answered it correctly, and the text of its answer."""

    correct: list[bool]
    texts: list[str]


class ExactMatch(Evaluation):
    """Accuracy of the final numbers of answers, which the model generates greedily.

    The questions are the held-out conversations whose last answer contains a number (the first ones, of `--tokens`
    tokens together). Where there are several data sets, `all` has the scores on all their questions.

    accuracy  share of questions whose answer has the right final number
    constant  share that the most frequent of the right numbers would get as the answer to every question

    tokens  most tokens of an answer
    data    names or paths of conversations; null: those of the command or of the run
    """

    causal = True

    def __init__(self, tokens: Count = 256, data: Sequence[str] | None = None) -> None:
        self.tokens, self.data = tokens, data

    def evaluate(self, subject: Subject) -> Results:
        """The accuracy on each data set. Raises ValueError for one without such a question."""
        correct: dict[str, list[bool]] = {}
        numbers: dict[str, list[Decimal | None]] = {}
        for domain in subject.domains:
            prompts, answers = numeric_questions(subject.samples(domain, subject.tokens), subject.tokenizer, domain)
            match = exact_match(subject.model, subject.tokenizer, prompts, answers, self.tokens)
            correct[domain], numbers[domain] = match.correct, [final_number(answer) for answer in answers]
        if len(correct) > 1:
            correct["all"] = [right for each in correct.values() for right in each]
            numbers["all"] = [number for each in numbers.values() for number in each]
        return Results(
            {
                domain: {"accuracy": proportion_score(each), "constant": best_constant(numbers[domain])}
                for domain, each in correct.items()
            }
        )


def best_constant(numbers: Sequence[Decimal | None]) -> Score:
    """The share of the most frequent number."""
    ((frequent, _),) = Counter(numbers).most_common(1)
    return proportion_score([number == frequent for number in numbers])


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
    rows: int = ROWS,
) -> Answers:
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
            written = generate(model, ids, max_new_tokens, temperature=0.0, eos=tokenizer.eos)
            continuations = written[:, length:].tolist()
            for i, row in zip(batch, continuations, strict=True):
                end = row.index(tokenizer.eos) if tokenizer.eos in row else len(row)
                texts[i] = tokenizer.decode(row[:end])
    return Answers([final_number(text) == number for text, number in zip(texts, numbers, strict=True)], texts)
