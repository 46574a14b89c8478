"""Problems that a program makes and verifies: numbers to sort, and expressions that reach a target.

Problems are as bytes. A tenth of them is held out by a hash of the prompt, and so never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le, MinLen

from kleiber.config import Quantity
from kleiber.data import (
    Bytes,
    Conversations,
    HeldOutRows,
    InstructCorpus,
    PackedConversations,
    TokenRows,
    digest,
    parse_bytes,
)
from kleiber.types import Count, HeldOut, Row, Seed
from kleiber_topics.rewards.verifiers import OPERATIONS, evaluate

HELD_OUT_OF = 10  # one problem of this many is held out
TRIES = 100  # to draw a problem that is not there yet, on average


@dataclass(frozen=True)
class Problem:
    """A prompt, a right answer, and what else a verifier reads."""

    prompt: str
    answer: str
    columns: Row = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Bytes of prompt and answer, and an end-of-text token on each side."""
        return len(self.prompt) + len(self.answer) + 2


class ProblemRows(Conversations):
    """Problems one to a row: the end-of-text id, the prompt, the answer, and that id again."""

    def __init__(self, problems: Sequence[Problem], context: int) -> None:
        ids: list[int] = []
        marks: list[int] = []
        starts = [0]
        for problem in problems:
            prompt, answer = problem.prompt.encode(), problem.answer.encode()
            ids += [Bytes.eos, *prompt, *answer, Bytes.eos]
            marks += [0] * (1 + len(prompt)) + [1] * (len(answer) + 1)
            starts.append(len(ids))
        bounds, self.problems = np.array(starts), problems
        answers = TokenRows(np.array(marks, np.uint8), bounds)
        super().__init__(TokenRows(np.array(ids, np.uint16), bounds), answers, context, Bytes())

    def columns(self, i: int) -> Row:
        """The columns of the problem, with its prompt and answer."""
        problem = self.problems[i]
        return {"prompt": problem.prompt, "answer": problem.answer, **problem.columns}


@dataclass(frozen=True)
class Problems:
    """Settings of problems.

    problems  different training problems, which are one epoch; fewer where there are no more
    held_out  most validation problems
    pack      true: as many problems to a row as fit; false: one, with padding
    verifier  name of the reward that verifies answers (objective.reward)
    max_bytes of the training text, about; null: no limit
    """

    kind: ClassVar[str] = ""

    problems: Count = 20_000
    held_out: Count = 200
    seed: Seed = 0
    pack: bool = False
    verifier: str = ""
    max_bytes: Quantity | None = None

    def draw(self, random: np.random.Generator) -> Problem:
        """Draws a problem."""
        raise NotImplementedError

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Draws the problems. Raises ValueError for a problem that exceeds the context."""
        random = np.random.default_rng(self.seed % 2**32)
        train: dict[str, Problem] = {}
        held_out: dict[str, Problem] = {}
        left, problems = parse_bytes(self.max_bytes), self.problems
        if left is not None:
            problems = max(1, min(problems, left // self.draw(np.random.default_rng(0)).tokens))
        for _ in range(TRIES * (problems + self.held_out)):
            problem = self.draw(random)
            if problem.tokens > context + 1:
                raise ValueError(
                    f"a problem of data={self.kind} has {problem.tokens} tokens, more than model.context={context} "
                    f"reads: set model.context={problem.tokens - 1} or more"
                )
            is_held_out = int(digest([problem.prompt]), 16) % HELD_OUT_OF == 0
            part, most = (held_out, self.held_out) if is_held_out else (train, problems)
            if len(part) < most:
                part.setdefault(problem.prompt, problem)
            if len(train) == problems and len(held_out) == self.held_out:
                break
        rows = ProblemRows([*train.values()], context)
        samples = PackedConversations(rows) if self.pack else rows
        validation: dict[str, HeldOut] = {self.kind: HeldOutRows(ProblemRows([*held_out.values()], context))}
        return InstructCorpus(
            name=self.kind,
            config=", ".join(map(str, astuple(self)[6:])),
            hash=digest([self.kind, 1, *map(str, astuple(self))]),
            tokenizer=Bytes(),
            train=samples,
            validation=validation,
            num_tokens=samples.num_tokens,
            num_bytes=samples.num_bytes,
            num_answers=rows.num_answers,
            verifier=self.verifier,
        )


@dataclass(frozen=True)
class Sorting(Problems):
    """Numbers to sort, such as `53 7 21=` with the answer `7 21 53`.

    lengths  how many numbers a problem may have
    largest  the largest number
    """

    kind: ClassVar[str] = "sorting"

    verifier: str = "sorting"
    lengths: Annotated[Sequence[Annotated[int, Ge(2), Le(100)]], MinLen(1)] = (3, 4, 5)
    largest: Annotated[int, Ge(1), Le(10**6)] = 99

    def draw(self, random: np.random.Generator) -> Problem:
        numbers = random.integers(0, self.largest + 1, int(random.choice(list(self.lengths)))).tolist()
        return Problem(" ".join(map(str, numbers)) + "=", " ".join(map(str, sorted(numbers))), {"numbers": numbers})


@dataclass(frozen=True)
class Countdown(Problems):
    """Numbers that make a target with + - * / and parentheses, such as `3 7 2:23=` with the answer `3*7+2`.

    Any expression that uses each number once and has the value of the target is right (Gandhi et al. 2024,
    arXiv:2404.03683).

    lengths  how many numbers a problem may have
    largest  the largest number; targets are whole numbers from 1 to ten times as much
    """

    kind: ClassVar[str] = "countdown"

    verifier: str = "countdown"
    lengths: Annotated[Sequence[Annotated[int, Ge(2), Le(6)]], MinLen(1)] = (3,)
    largest: Annotated[int, Ge(1), Le(1000)] = 9

    def draw(self, random: np.random.Generator) -> Problem:
        """Draws an expression of random numbers and operations whose value can be a target."""
        while True:
            numbers = random.integers(1, self.largest + 1, int(random.choice(list(self.lengths)))).tolist()
            expression = str(numbers[0])
            for number in numbers[1:]:
                sign = "+-*/"[random.integers(len(OPERATIONS))]
                left = f"({expression})" if sign in "*/" and set("+-") & set(expression) else expression
                expression = f"{left}{sign}{number}"
            value = evaluate(expression)
            if value is not None and value.denominator == 1 and 1 <= value <= 10 * self.largest:
                drawn = [numbers[i] for i in random.permutation(len(numbers))]
                prompt = f"{' '.join(map(str, drawn))}:{value}="
                return Problem(prompt, expression, {"numbers": drawn, "target": int(value)})
