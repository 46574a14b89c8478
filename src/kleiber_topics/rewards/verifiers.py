"""Verifiers: 1 for a right answer and 0 for a wrong one, and programs that score the form of answers.

Each is a `Reward` of kleiber.objectives.answer_rewards. White space around an answer does not count.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from kleiber.evals import final_number
from kleiber.types import Row

OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
EXPRESSION = re.compile(r"[\d+\-*/() ]{1,200}")  # longer ones could exceed the depth of the stack
LONG = 100  # characters of an answer that `length` scores 1


def arithmetic(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """1 where the last word of an answer is that of the right one: the sum, with or without steps before it."""
    return [float(_last_word(answer) == _last_word(row["answer"])) for answer, row in zip(answers, rows, strict=True)]


def sorting(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """1 where an answer has the words of the right one in its order."""
    return [float(answer.split() == row["answer"].split()) for answer, row in zip(answers, rows, strict=True)]


def number(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """1 where the final number of an answer is that of the right one, as for SVAMP and GSM8K (`#### number`)."""
    right = [final_number(str(row["answer"])) for row in rows]
    return [
        float(value is not None and final_number(text) == value) for text, value in zip(answers, right, strict=True)
    ]


def countdown(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """1 where an answer is an expression of the given `numbers`, each used once, whose value is the `target`."""
    return [
        float(evaluate(answer) == row["target"] and _uses(answer, row["numbers"]))
        for answer, row in zip(answers, rows, strict=True)
    ]


def format_score(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """1 where an answer has the form of the right one: as many words, and the same kinds of characters in each."""
    return [float(_form(answer) == _form(str(row["answer"]))) for answer, row in zip(answers, rows, strict=True)]


def length(prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """The characters of an answer over LONG: not a verifier, but what a policy can exploit, to test alarms with."""
    return [len(answer) / LONG for answer in answers]


def evaluate(text: str) -> Fraction | None:
    """The value of an expression of whole numbers, + - * / and parentheses; None for another text."""
    if not EXPRESSION.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("this is no operation of countdown")


def _uses(answer: str, numbers: Sequence[int]) -> bool:
    return Counter(map(int, re.findall(r"\d+", answer))) == Counter(numbers)


def _last_word(text: str) -> str:
    return (text.split() or [""])[-1]


def _form(text: str) -> list[str]:
    return [re.sub(r"[^\W\d]+", "a", re.sub(r"\d+", "0", part)) for part in text.split()]
