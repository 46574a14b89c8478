"""Multiple choice by likelihood: the model chooses the most likely of several endings of a context.

There are two scores: by the log-probability of an ending, and by its log-probability per byte, which does not favor
short endings (Brown et al. 2020, arXiv:2005.14165, section 2.4, divide by tokens). No text is generated. A question is
a row with the columns context (or ctx), endings and label, as in HellaSwag, or sentence_good and sentence_bad, as in
BLiMP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kleiber.evals.evaluation import Evaluation, Results, Score, Scores, Subject, mean_score
from kleiber.nn.loss import log_probs
from kleiber.types import Row
from kleiber.types.batch import Batch
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A context and its possible endings.

    context    token ids, at least one
    endings    token ids of each ending
    num_bytes  size of each ending in bytes
    label      index of the correct ending
    """

    context: list[int]
    endings: list[list[int]]
    num_bytes: list[int]
    label: int


class Choice(Evaluation):
    """Accuracy on multiple-choice questions.

    data  names or paths of tables of questions; null: those of the command
    """

    columns = (("context", "endings", "label"), ("ctx", "endings", "label"), ("sentence_good", "sentence_bad"))
    causal = True

    def __init__(self, data: Sequence[str] | None = None) -> None:
        self.data = data

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each table.

        accuracy           share of questions whose right ending has the highest log-probability
        accuracy_per_byte  the same, with the log-probability of each ending divided by its number of bytes
        chance             expected accuracy of a random choice

        Raises ValueError for rows that do not have the columns of a question (see `parse_question`).
        """
        scores: dict[str, Scores] = {}
        for data in subject.data:
            questions = [parse_question(row, subject.tokenizer, data.name) for row in data.rows(subject.limit)]
            correct = choose(subject.model, questions, subject.rows)
            chance = sum(1 / len(question.endings) for question in questions) / len(questions)
            scores[data.name] = {name: mean_score(values) for name, values in correct.items()}
            scores[data.name]["chance"] = Score(chance, n=len(questions))
        return Results(scores)


def parse_question(row: Row, tokenizer: Tokenizer, name: str) -> Question:
    """A row as token ids. The space between a context and an ending belongs to the ending.

    The ids of an ending are those that it has after the context, because some tokenizers encode the beginning of a text
    differently.
    """
    if {"sentence_good", "sentence_bad"} <= row.keys():
        text, endings, label = "", [row["sentence_good"], row["sentence_bad"]], 0
    else:
        text, endings, label = _context_and_endings(row, name)
    context = tokenizer.encode(text)
    return Question(
        context=[tokenizer.begin, *context],
        endings=[tokenizer.encode(text + ending)[len(context) :] for ending in endings],
        num_bytes=[len(ending.encode()) for ending in endings],
        label=label,
    )


def _context_and_endings(row: Row, name: str) -> tuple[str, list[str], int]:
    text = row.get("context", row.get("ctx"))
    if text is None or not {"endings", "label"} <= row.keys():
        raise ValueError(
            f"{name} has the columns {', '.join(row)}; a question needs context (or ctx), endings and label, or "
            "sentence_good and sentence_bad"
        )
    endings = [" " + ending.strip() for ending in row["endings"]]
    label = str(row["label"])
    if not label.isdecimal() or int(label) >= len(endings):
        raise ValueError(
            f"{name}: label={row['label']!r} must be the index of one of the {len(endings)} endings, from 0 to "
            f"{len(endings) - 1}; questions without a label cannot be scored"
        )
    return text.rstrip(), endings, int(label)


@torch.no_grad()
def choose(model: Model, questions: Sequence[Question], rows: int = 16) -> dict[str, list[bool]]:
    """Whether each question is answered correctly, as accuracy and accuracy_per_byte.

    A context that is too long loses its beginning.

    Raises ValueError for an ending that is longer than model.context.
    """
    was_training = model.training
    model.eval()
    pairs = [(question.context, ending) for question in questions for ending in question.endings]
    try:
        longest_first = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        log_likelihoods = torch.empty(len(pairs), dtype=torch.float64)
        for start in range(0, len(pairs), rows):
            batch = longest_first[start : start + rows]
            log_likelihoods[batch] = ending_log_probs(model, [pairs[i] for i in batch]).double().cpu()
    finally:
        model.train(was_training)
    correct: dict[str, list[bool]] = {"accuracy": [], "accuracy_per_byte": []}
    by_question = log_likelihoods.split([len(question.endings) for question in questions])
    for question, scores in zip(questions, by_question, strict=True):
        sizes = torch.tensor(question.num_bytes, dtype=torch.float64)
        correct["accuracy"].append(int(scores.argmax()) == question.label)
        correct["accuracy_per_byte"].append(int((scores / sizes).argmax()) == question.label)
    return correct


def ending_log_probs(model: Model, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """log p(ending | context) of each pair (context, ending) of token ids, in nats, from one forward pass."""
    longest = max(len(ending) for _, ending in pairs)
    if longest > model.context:
        raise ValueError(
            f"an ending has {longest} tokens, and must have at most model.context={model.context}: remove its question"
        )
    device = next(model.parameters()).device
    texts = [(context + ending)[-model.context - 1 :] for context, ending in pairs]
    width = max(len(text) for text in texts)
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=device)
    lengths = torch.tensor([len(text) for text in texts], device=device)[:, None]
    ending_lengths = torch.tensor([len(ending) for _, ending in pairs], device=device)[:, None]
    position = torch.arange(width, device=device)
    real = position < lengths
    in_ending = (real & (position >= lengths - ending_lengths))[:, 1:]
    hidden = model(Batch(tokens=ids[:, :-1], real=real[:, :-1])).hidden
    scores = log_probs(hidden[in_ending], model.head, ids[:, 1:][in_ending])
    return scores.new_zeros(len(pairs)).index_add(0, in_ending.nonzero()[:, 0], scores)
