"""Exact match of final answers: the model answers a question greedily, and the final number of its answer is compared.

For chains of thought as in GSM8K, whose answers end in `#### number`. The text around the number is not scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from kleiber.data.chat import FORMS, encode_prompt, has_conversations, parse_row
from kleiber.data.evaluation_sets import DataSet
from kleiber.evals.evaluation import Evaluation, Results, Score, Subject, proportion_score
from kleiber.models.generation import continuations
from kleiber.types import Count, Row
from kleiber.types.access import DataPath
from kleiber.types.contracts import Samples
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics
from kleiber.types.tokenizer import Tokenizer

# A minus after a digit is a dash or a difference, and a comma is part of a number between groups of three digits alone.
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
ANSWER_MARK = "####"

Question = tuple[list[int], str]  # token ids of the prompt, and the text of the right answer


@dataclass(frozen=True)
class Answers:
    """For each question, whether a model answered it correctly, and the text of its answer."""

    correct: list[bool]
    texts: list[str]


class ExactMatch(Evaluation):
    """Accuracy of the final numbers of answers, which the model generates greedily.

    The questions are the held-out conversations whose last answer contains a number: of the run (the first ones, of
    `--tokens` tokens together), or of tables in a form that data=instruct reads. Where there are several data sets,
    `all` has the scores on all their questions.

    accuracy  share of questions whose answer has the right final number
    constant  share that the most frequent of the right numbers would get as the answer to every question

    tokens  most tokens of an answer
    data    names or paths of conversations; null: those of the command or of the run
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "accuracy": Metric("accuracy", "higher"),
        "constant": Metric("accuracy of the most frequent answer", "none"),
    }
    data_labels: ClassVar[Mapping[str, str]] = {"all": "all data sets"}
    reads = f"conversations, in a table with the columns {FORMS}"

    def __init__(self, tokens: Count = 256, data: Sequence[DataPath] | None = None) -> None:
        self.tokens, self.data = tokens, data

    def accepts(self, data: DataSet) -> bool:
        """Whether the data is a table of conversations, or the data of a run, which may have questions."""
        return data.of_run or has_conversations(data.columns)

    def evaluate(self, subject: Subject) -> Results:
        """The accuracy on each data set. Raises ValueError for one without such a question."""
        correct: dict[str, list[bool]] = {}
        numbers: dict[str, list[Decimal | None]] = {}
        for domain in subject.domains:
            prompts, answers = numeric_questions(subject, subject[domain], subject.tokens)
            match = match_answers(subject.model, subject.tokenizer, prompts, answers, self.tokens)
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


def numeric_questions(subject: Subject, data: DataSet, tokens: int | None = None) -> tuple[list[list[int]], list[str]]:
    """Prompts (token ids) and answers (texts) of the conversations whose last answer contains a number.

    tokens  about how many of the samples of a run to read; None: all of them

    Raises ValueError where there are none, and for a row of a table that is not a conversation.
    """
    if data.table is None:
        questions = sample_questions(subject.samples(data.name, tokens), subject.tokenizer)
    else:
        questions = row_questions(data.rows(subject.limit), subject.tokenizer)
    if not questions:
        raise ValueError(
            f"--evals exact_match needs conversations, and {data.name} has none: evaluate a run with data=instruct, or "
            "name a table of conversations with --data"
        )
    numeric = [(prompt, answer) for prompt, answer in questions if final_number(answer) is not None]
    if not numeric:
        raise ValueError(f"--evals exact_match: none of the {len(questions)} answers in {data.name} contains a number")
    return [prompt for prompt, _ in numeric], [answer for _, answer in numeric]


def sample_questions(samples: Samples, tokenizer: Tokenizer) -> list[Question]:
    """The questions of the conversations that a run holds out."""
    asked = [question for question in map(samples.question, range(len(samples))) if question is not None]
    return [(prompt, tokenizer.decode(answer)) for prompt, answer in asked]


def row_questions(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Question]:
    """The questions of a table, each the turns before the last answer of a row."""
    questions: list[Question] = []
    for dialog in map(parse_row, rows):
        answers = [i for i, turn in enumerate(dialog) if turn.role == "assistant"]
        if answers:
            questions.append((encode_prompt(dialog[: answers[-1]], tokenizer), dialog[answers[-1]].content))
    return questions


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or the last number of a text without that mark; None without a number.

    Thousands separators are removed, so 1,000 equals 1000 and 1000.00; 1,2,3 are three numbers, and 2010-2015 two.
    """
    _, mark, tail = text.rpartition(ANSWER_MARK)
    numbers = NUMBER.findall(tail)
    if not numbers:
        return None
    return Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))


def match_answers(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    answers: Sequence[str],
    max_new_tokens: int = 256,
) -> Answers:
    """Compares the final numbers of greedy continuations of the prompts with those of `answers`.

    A continuation ends at the end of text. Raises ValueError where there is no prompt, and for an answer without a
    number.
    """
    numbers = [final_number(answer) for answer in answers]
    if not prompts or None in numbers:
        raise ValueError(
            f"exact match needs a question, and a number in every answer; of {len(prompts)} answers "
            f"{numbers.count(None)} contain none"
        )
    written = continuations(model, prompts, max_new_tokens, tokenizer.eos)
    texts = [tokenizer.decode(row) for row in written]
    return Answers([final_number(text) == number for text, number in zip(texts, numbers, strict=True)], texts)
