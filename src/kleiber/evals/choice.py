"""Multiple choice by likelihood: the model chooses the most likely of several endings of a context.

There are two scores: by the log-probability of an ending, and by its log-probability per byte, which does not favor
short endings (Brown et al. 2020, arXiv:2005.14165, section 2.4, divide by tokens). No text is generated. A question is
a row with the columns context (or ctx), endings and label, as in HellaSwag, or sentence_good and sentence_bad, as in
BLiMP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kleiber.evals import Subject
from kleiber.nn.loss import log_probs
from kleiber.types import Json, Row
from kleiber.types.batch import Batch
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer

SUFFIXES = (".jsonl", ".parquet")


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


def evaluate(subject: Subject) -> Json:
    """Evaluates multiple-choice questions and returns these numbers for each file of questions, by its name.

    accuracy           share of questions whose right ending has the highest log-probability
    accuracy_per_byte  the same, with the log-probability of each ending divided by its number of bytes
    standard_error     standard error of `accuracy`
    chance             expected accuracy of a random choice
    questions          number of questions

    Raises ValueError where `subject.task_files` is not a file or folder of questions, for a bidirectional model, and
    for rows that do not have the columns of a question (see `parse_question`).
    """
    if not subject.model.causal:
        raise ValueError("--evals choice needs a causal model, such as model=gpt; this model is bidirectional")
    results = {}
    for name, path in question_files(subject.task_files).items():
        questions = [parse_question(row, subject.corpus.tokenizer, path) for row in read_rows(path)]
        if not questions:
            raise ValueError(f"--task-files: {path} must contain at least one question, and contains none")
        scores = choose(subject.model, questions, subject.rows)
        accuracy, count = scores["accuracy"], len(questions)
        chance = sum(1 / len(question.endings) for question in questions) / count
        error = math.sqrt(accuracy * (1 - accuracy) / count)
        results[name] = {**scores, "standard_error": error, "chance": chance, "questions": count}
    return results


def question_files(place: Path | None) -> dict[str, Path]:
    """The files of questions at --task-files, by their path within that folder without the suffix.

    Raises ValueError where there are none.
    """
    suffixes = " or ".join(SUFFIXES)
    if place is None:
        raise ValueError(f"--evals choice needs --task-files FILE or FOLDER with questions in {suffixes} files")
    if not place.exists():
        raise ValueError(f"--task-files {place} does not exist")
    if place.is_file() and place.suffix in SUFFIXES:
        return {place.stem: place}
    files = sorted(path for suffix in SUFFIXES for path in place.rglob(f"*{suffix}"))
    if not files:
        raise ValueError(f"--task-files {place} contains no {suffixes} file")
    return {str(path.relative_to(place).with_suffix("")): path for path in files}


def read_rows(path: Path) -> list[Json]:
    """The rows of a .jsonl or .parquet file, as dictionaries."""
    if path.suffix == ".jsonl":
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        return [_parse_line(path, number, line) for number, line in lines if line.strip()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _parse_line(path: Path, number: int, line: str) -> Json:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: {line[:60]!r} is not JSON ({error})") from None


def parse_question(row: Row, tokenizer: Tokenizer, path: Path) -> Question:
    """A row as token ids. The space between a context and an ending belongs to the ending.

    The ids of an ending are those that it has after the context, because some tokenizers encode the beginning of a text
    differently.
    """
    if {"sentence_good", "sentence_bad"} <= row.keys():
        text, endings, label = "", [row["sentence_good"], row["sentence_bad"]], 0
    else:
        text, endings, label = _context_and_endings(row, path)
    context = tokenizer.encode(text)
    return Question(
        context=[tokenizer.begin, *context],
        endings=[tokenizer.encode(text + ending)[len(context) :] for ending in endings],
        num_bytes=[len(ending.encode()) for ending in endings],
        label=label,
    )


def _context_and_endings(row: Row, path: Path) -> tuple[str, list[str], int]:
    text = row.get("context", row.get("ctx"))
    if text is None or not {"endings", "label"} <= row.keys():
        raise ValueError(
            f"{path} has the columns {', '.join(row)}; a question needs context (or ctx), endings and label, or "
            "sentence_good and sentence_bad"
        )
    endings = [" " + ending.strip() for ending in row["endings"]]
    label = str(row["label"])
    if not label.isdecimal() or int(label) >= len(endings):
        raise ValueError(
            f"{path}: label={row['label']!r} must be the index of one of the {len(endings)} endings, from 0 to "
            f"{len(endings) - 1}; questions without a label cannot be scored"
        )
    return text.rstrip(), endings, int(label)


@torch.no_grad()
def choose(model: Model, questions: Sequence[Question], rows: int = 16) -> dict[str, float]:
    """accuracy and accuracy_per_byte over the questions. A context that is too long loses its beginning.

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
    correct = correct_per_byte = 0
    by_question = log_likelihoods.split([len(question.endings) for question in questions])
    for question, scores in zip(questions, by_question, strict=True):
        sizes = torch.tensor(question.num_bytes, dtype=torch.float64)
        correct += int(scores.argmax()) == question.label
        correct_per_byte += int((scores / sizes).argmax()) == question.label
    return {"accuracy": correct / len(questions), "accuracy_per_byte": correct_per_byte / len(questions)}


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
