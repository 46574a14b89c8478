"""How often a judge prefers what a model answers to the answers of the model that it started from, blindly.

The held-out pairs of preference data are answers of the start, or of whoever wrote the data. The model answers their
prompts anew, and a simulated judge compares each new answer with one of the two of its pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from kleiber.data import DataSet
from kleiber.evals import Evaluation, Results, Subject, mean_score, proportion_score
from kleiber.models import continuations
from kleiber.types import Batch, Count, Metric, Metrics, NonNegative, Scores, Seed
from kleiber_topics.judging.annotators import Utility

ROWS = 64  # answered at once


class WinRate(Evaluation):
    """Win rate of a model's answers against those of held-out pairs, by a judge with a planted utility.

    win_rate           share of the prompts on which the model's answer has the greater utility; a tie counts 1/2
    utility            mean utility of the model's answers
    start_utility      mean utility of the answers of the pairs
    bytes, start_bytes mean length of the answers, since a judge may be fooled by it

    utility      what the judge prefers (`WordShare`, `Variety`)
    answers      most prompts that are answered
    temperature  at which the model answers
    seed         of the answers, and of which answer of each pair is compared
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "win_rate": Metric("win rate", "higher"),
        "utility": Metric("utility of answers", "higher"),
        "start_utility": Metric("utility of the answers of the pairs", "none"),
        "bytes": Metric("length of answers", "none", "bytes"),
        "start_bytes": Metric("length of the answers of the pairs", "none", "bytes"),
    }

    def __init__(
        self,
        utility: Utility,
        answers: Annotated[int, Ge(2), Le(100_000)] = 200,
        temperature: NonNegative = 1.0,
        seed: Seed = 0,
    ) -> None:
        self.utility, self.answers, self.temperature, self.seed = utility, answers, temperature, seed

    def accepts(self, data: DataSet) -> bool:
        """Only the data of the run."""
        return data.of_run

    def evaluate(self, subject: Subject) -> Results:
        """Scores of the run's validation pairs. Raises ValueError for data without pairs of answers."""
        scores: dict[str, Scores] = {}
        for domain in subject.domains:
            cases = self._cases(subject, domain)
            texts = self._answer(subject, cases)
            ours = np.array([self.utility.utility(text) for text in texts])
            theirs = np.array([self.utility.utility(case.answer) for case in cases])
            scores[domain] = {
                "win_rate": proportion_score((np.sign(ours - theirs) + 1) / 2),
                "utility": mean_score(ours),
                "start_utility": mean_score(theirs),
                "bytes": mean_score([float(len(text.encode())) for text in texts]),
                "start_bytes": mean_score([float(len(case.answer.encode())) for case in cases]),
            }
        return Results(scores)

    def _cases(self, subject: Subject, domain: str) -> list[Case]:
        """The prompt of each held-out pair, with one of its two answers at random."""
        samples, random = subject.samples(domain), np.random.default_rng(abs(self.seed))
        if samples.sides < 2:  # the counterpart of a labeled answer is one to another prompt
            raise ValueError(
                f"--evals win_rate needs pairs of answers, and {domain} has none: evaluate a run with data=preference "
                "or data=judged"
            )
        cases = []
        for i in range(min(self.answers, len(samples))):
            batch = samples.gather(np.array([i]))
            sides = (batch, batch.counterpart)
            side = sides[int(random.integers(2))]
            assert side is not None, "a pair has two sides"
            cases.append(read_case(side, subject))
        return cases

    def _answer(self, subject: Subject, cases: list[Case]) -> list[str]:
        """Answers of the model, of at most as many tokens as the longest answer of the pairs."""
        tokens, eos = max(case.tokens for case in cases), subject.tokenizer.eos
        texts = []
        for start in range(0, len(cases), ROWS):
            prompts = [case.prompt for case in cases[start : start + ROWS]]
            draws = np.random.default_rng([abs(self.seed), start]).random((len(prompts), tokens))
            written = continuations(subject.model, prompts, tokens, eos, self.temperature, draws=draws)
            texts += [answer_text(subject, prompt, row) for prompt, row in zip(prompts, written, strict=True)]
        return texts


@dataclass(frozen=True)
class Case:
    """Token ids of a prompt, and an answer to it with its number of tokens."""

    prompt: list[int]
    answer: str
    tokens: Count


def read_case(row: Batch, subject: Subject) -> Case:
    """The conversation of a batch of one row, whose weights mark the answer."""
    assert row.weights is not None
    real = row.is_real[0]
    tokens, answers = row.tokens[0][real], row.weights[0][real] > 0
    prompt, answer = tokens[~answers].tolist(), tokens[answers].tolist()
    return Case(prompt, answer_text(subject, prompt, answer), len(answer))


def answer_text(subject: Subject, prompt: list[int], answer: list[int]) -> str:
    """The text of an answer, with the space in front of it that a tokenizer may leave out of a text on its own."""
    return subject.tokenizer.decode([*prompt, *answer])[len(subject.tokenizer.decode(prompt)) :]
