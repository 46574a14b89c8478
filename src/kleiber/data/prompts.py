"""Prompts for models to answer: the beginnings of texts, the questions of conversations, or lines of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kleiber.data.chat import parse_row
from kleiber.data.evaluation_sets import TEXT, DataSet
from kleiber.data.preference import parse_answer
from kleiber.types import Row, Template
from kleiber.types.tokenizer import Tokenizer

LEAST_CHARACTERS = 8  # of the beginning of a text
MOST_BYTES = 32  # of a token, to encode no more of a text than a prompt needs
SENTENCE = re.compile(r"[.!?]\s+(?=[A-Z])")


def prompts_of(data: DataSet, tokenizer: Tokenizer, count: int, tokens: int) -> tuple[list[str], Template]:
    """The first distinct prompts of a data set, at most `count`, and the template in which a model is given them.

    tokens  of the beginning of a text, which ends with a whole word

    A prompt is the question of a conversation, in the template of conversations; or the beginning of a document of a
    table or of a held-out sample of other text, as plain text, and where these are too few, of a sentence in one.
    Raises ValueError for data without prompts.
    """
    is_text = not data.columns or TEXT in data.columns
    prompts: dict[str, None] = {}
    for text in _beginnings(data, tokenizer, tokens) if is_text else _questions(data):
        if text.strip():
            prompts.setdefault(text.strip())
        if len(prompts) == count:
            break
    if not prompts:
        raise ValueError(f"{data.name} has no prompts: a prompt is the beginning of a text, or a question")
    return list(prompts), "plain" if is_text else "chat"


def _beginnings(data: DataSet, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    """The beginnings of all documents first, and then those of the sentences in them."""
    longest = MOST_BYTES * tokens
    if data.table is None:
        samples = data.samples()
        texts = [tokenizer.decode(samples.gather(np.array([i])).tokens[0].tolist()) for i in range(len(samples))]
    else:
        texts = [str(row[TEXT]).strip() for row in data.rows()]
    for text in texts:
        yield _whole_words(tokenizer.decode(tokenizer.encode(text[:longest])[:tokens]))
    for text in texts:
        for match in SENTENCE.finditer(text):
            yield _whole_words(tokenizer.decode(tokenizer.encode(text[match.end() :][:longest])[:tokens]))


def _whole_words(text: str) -> str:
    """The text without its last word, which may be cut; nothing where little is left."""
    beginning = text.rpartition(" ")[0].strip()
    return beginning if len(beginning) >= LEAST_CHARACTERS else ""


def _questions(data: DataSet) -> Iterator[str]:
    for row in data.rows():
        question = _question(row)
        if question is not None:
            yield question


def _question(row: Row) -> str | None:
    """The question of a row; None for a conversation of several questions, or after a system message."""
    dialog = parse_answer(row, "chosen")[:-1] if "chosen" in row else parse_row(row)
    questions = [turn for turn in dialog if turn.role != "assistant"]
    answers = [turn for turn in dialog if turn.role == "assistant"]
    return questions[0].content if len(questions) == 1 and len(answers) <= 1 else None


def read_prompts(path: Path) -> list[str]:
    """The distinct prompts of a file: lines of text, or the column prompt of a .jsonl file.

    Raises ValueError for a file without prompts, and for a row that has none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"--prompts {path}: {error.strerror}") from None
    lines = [line.strip() for line in lines if line.strip()]
    if path.suffix == ".jsonl":
        try:
            lines = [json.loads(line)["prompt"] for line in lines]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"--prompts {path} must have an object with the column prompt in every line") from None
    prompts = list(dict.fromkeys(line for line in lines if isinstance(line, str) and line.strip()))
    if not prompts:
        raise ValueError(f"--prompts {path} has no prompts: write one on each line")
    return prompts


def answer_text(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text of an answer, decoded behind its prompt because a tokenizer may leave out a first space."""
    return tokenizer.decode([*prompt, *answer])[len(tokenizer.decode(prompt)) :].strip()
