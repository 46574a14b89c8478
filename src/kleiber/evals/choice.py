"""Multiple choice by likelihood: the model chooses the likeliest of several endings of one context.

There are two scores: the plain log-probability, and that per byte of the ending, which does not favor short ones (Brown
et al. 2020, arXiv:2005.14165, section 2.4, divides by tokens). Nothing is generated. Questions are files of rows with
context (or ctx), endings, label, as in HellaSwag, or sentence_good, sentence_bad, as in BLiMP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kleiber.evals import Subject
from kleiber.nn.loss import log_probs
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import Tokenizer
from kleiber.types.model import Model

KINDS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Question:
    """Token ids of a context (at least one) and of its endings, their sizes in bytes, and which ending is right."""

    context: list[int]
    endings: list[list[int]]
    num_bytes: list[int]
    right: int


def evaluate(subject: Subject) -> Json:
    """accuracy, accuracy_per_byte, the standard error of the first, what chance scores, and questions, by file.

    Raises ValueError without `subject.task_files` (a .jsonl or .parquet file, or a folder of them), for a bidirectional
    model, and for rows of other columns, naming those that are there.
    """
    home = subject.task_files
    if home is None or not home.exists():
        raise ValueError(f"choice asks the questions of --task-files FILE or DIR ({', '.join(KINDS)}); got {home}")
    if not subject.model.causal:
        raise ValueError("choice needs next-token probabilities, and this model reads both ways: take a causal one")
    files = [home] if home.is_file() else sorted(path for kind in KINDS for path in home.rglob(f"*{kind}"))
    files = [path for path in files if path.suffix in KINDS]
    if not files:
        raise ValueError(f"--task-files {home} holds no {' and no '.join(KINDS)} file")
    found = {}
    for path in files:
        name = path.stem if home.is_file() else str(path.relative_to(home).with_suffix(""))
        questions = [question(row, subject.corpus.tokenizer, path) for row in rows_of(path)]
        if not questions:
            raise ValueError(f"{path} holds no row")
        scores = choose(subject.model, questions, subject.rows)
        p, total = scores["accuracy"], len(questions)
        chance = sum(1 / len(one.endings) for one in questions) / total
        found[name] = {**scores, "standard_error": math.sqrt(p * (1 - p) / total), "chance": chance, "questions": total}
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        return [_line(path, number, line) for number, line in lines if line.strip()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _line(path: Path, number: int, line: str) -> Json:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: {line[:60]!r} is no JSON ({error})") from None


def question(row: Mapping[str, Any], tokenizer: Tokenizer, path: Path) -> Question:
    """A row as token ids; the space between a context and its endings belongs to the ending.

    An ending's ids are those it has behind the context: read alone, some tokenizers begin it in another way.
    """
    if {"sentence_good", "sentence_bad"} <= row.keys():
        before, endings, right = "", [row["sentence_good"], row["sentence_bad"]], 0
    else:
        text = row.get("context", row.get("ctx"))
        if text is None or not {"endings", "label"} <= row.keys():
            raise ValueError(
                f"{path} has no columns context (or ctx), endings, label, nor sentence_good, sentence_bad; it has "
                f"{', '.join(row)}"
            )
        label = str(row["label"])
        before, endings = text.rstrip(), [" " + one.strip() for one in row["endings"]]
        right = int(label) if label.isdecimal() else -1
    if not 0 <= right < len(endings):
        raise ValueError(
            f"{path}: label {row.get('label')!r} is none of the {len(endings)} endings, which count from 0; rows "
            "without labels cannot be scored"
        )
    begin = tokenizer.bos
    context = tokenizer.encode(before)
    behind = [tokenizer.encode(before + one)[len(context) :] for one in endings]
    opening = tokenizer.eos if begin is None else begin
    return Question([opening, *context], behind, [len(one.encode()) for one in endings], right)


@torch.no_grad()
def choose(model: Model, questions: Sequence[Question], rows: int = 16) -> dict[str, float]:
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


def ending_log_probs(model: Model, jobs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
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
