"""Answers that a model wrote to verifiable problems, as data: the right ones, or pairs of a right and a wrong one.

Fine-tuning on right answers of the model itself is rejection sampling (Yuan et al. 2023, arXiv:2308.01825), and one
round of expert iteration (Anthony et al. 2017, arXiv:1705.08439).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from kleiber.config import Quantity, local_copy
from kleiber.data import (
    FORMAT,
    Conversations,
    HeldOutRows,
    InstructCorpus,
    PairRows,
    PreferenceCorpus,
    TokenRows,
    cache_root,
    cached_folder,
    digest,
    id_dtype,
    parse_bytes,
    read_rows,
    write_rows,
)
from kleiber.objectives import VERIFIER, Answer, AnswerRewards, Question, answer_limit, questions_of, write_answers
from kleiber.records import write_array
from kleiber.types import Count, Json, Model, Samples, Seed, Tokenizer, hash_weights

Ids = tuple[int, ...]


class AnsweringModel(Protocol):
    """A trained model with its tokenizer; `kleiber.runs.open.TrainedModel` is one."""

    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


class VerifiableData(Protocol):
    """Settings of problems with a verifier, one to a row, such as `Sorting`."""

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus: ...


class Graded(NamedTuple):
    """A prompt, its right answer in the data, and the different right and wrong answers that the model wrote to it."""

    prompt: Ids
    answer: Ids
    right: Sequence[Ids]
    wrong: Sequence[Ids]


@dataclass(frozen=True)
class RightAnswers:
    """The different right answers of a model to training prompts; validation is that of the problems.

    open_model  reads a model from its folder; the run supplies it
    model       RUN or RUN/STAGE
    problems    data whose prompts the model answers, and whose verifier decides which answers are right
    prompts     most training prompts that are answered
    samples     answers to each, at temperature 1
    seed        of the answers
    max_bytes   of the prompts that are answered, about; null: no limit
    """

    open_model: Callable[[str], AnsweringModel]
    model: str
    problems: VerifiableData
    prompts: Count = 2000
    samples: Count = 8
    seed: Seed = 0
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Lets the model answer what is not in the cache. Raises ValueError where no answer is right."""
        corpus = self.problems.prepare(context, cache)
        graded, identity = self.grade(corpus, corpus.train, context, cache_root(cache))
        rows = [(item.prompt, answer) for item in graded for answer in item.right]
        if not rows:
            raise ValueError(f"data.model={self.model} answers none of {len(graded)} prompts right: raise data.samples")
        eos = corpus.tokenizer.eos
        ids = [np.array([*prompt, *answer, eos], np.int64) for prompt, answer in rows]
        marks = [np.repeat([0, 1], [len(prompt), len(answer) + 1]) for prompt, answer in rows]
        starts = np.cumsum([0, *map(len, ids)])
        tokens = TokenRows(np.concatenate(ids).astype(id_dtype(corpus.tokenizer.vocab_size)), starts)
        answers = TokenRows(np.concatenate(marks).astype(np.uint8), starts)
        train = Conversations(tokens, answers, context, corpus.tokenizer)
        return replace(
            corpus,
            config=f"{corpus.config}, {len(rows)} right answers of a model",
            hash=digest(["right answers", identity]),
            train=train,
            num_tokens=train.num_tokens,
            num_bytes=train.num_bytes,
            num_answers=train.num_answers,
        )

    def grade(self, corpus: InstructCorpus, samples: Samples, context: int, root: Path) -> tuple[list[Graded], Json]:
        """The graded answers to the first `prompts` of these samples, and what they depend on.

        Raises ValueError, which names `data.model`, for a model that cannot be opened or has another tokenizer.
        """
        try:
            opened = self.open_model(str(local_copy(self.model) or self.model))
        except ValueError as error:
            raise ValueError(f"data.model: {error}") from None
        if opened.tokenizer.hash.rpartition("/")[2] != corpus.tokenizer.hash.rpartition("/")[2]:
            raise ValueError(
                f"data.model={self.model} has the tokenizer {opened.tokenizer.hash}, and data.problems has "
                f"{corpus.tokenizer.hash}: choose a model with that tokenizer"
            )
        limit, eos = parse_bytes(self.max_bytes), corpus.tokenizer.eos
        size = max(1, samples.num_bytes // len(samples))
        questions = questions_of(samples, self.prompts if limit is None else max(1, min(self.prompts, limit // size)))
        prompts = {number: question.prompt for number, question in enumerate(questions)}
        identity = {
            "format": FORMAT, "answers": hash_weights(opened.model), "prompts": digest([*prompts.values()]),
            "context": context, "samples": self.samples, "seed": self.seed,
        }  # fmt: skip

        def build(folder: Path) -> Json:
            """Writes the answers, each with the end-of-text token if it has one."""
            limit = answer_limit(corpus.train, context, None, "")
            written = write_answers(opened.model, prompts, self.samples, limit, eos, self.seed)
            rows = (np.array([*answer.ids, *([eos] if answer.ended else [])], np.int64) for answer in written)
            write_rows(folder / "answers", rows, id_dtype(corpus.tokenizer.vocab_size))
            return {"prompts": len(prompts)}

        folder, _ = cached_folder(root, "own-answers", identity, build)
        rows = read_rows(folder / "answers", id_dtype(corpus.tokenizer.vocab_size))
        texts = [tuple(rows[i].tolist()) for i in range(len(prompts) * self.samples)]
        return self._graded(corpus, questions, texts), identity

    def _graded(self, corpus: InstructCorpus, questions: Sequence[Question], texts: Sequence[Ids]) -> list[Graded]:
        """The questions with their answers, which the verifier has scored; unended answers are neither."""
        eos, columns = corpus.tokenizer.eos, [question.columns(corpus.tokenizer) for question in questions]
        asked = [question for question in questions for _ in range(self.samples)]
        answers = [
            Answer(question.prompt, [token for token in text if token != eos], text[-1:] == (eos,))
            for question, text in zip(asked, texts, strict=True)
        ]
        scores = AnswerRewards(VERIFIER, corpus).score(answers, [row for row in columns for _ in range(self.samples)])
        graded = []
        for i, question in enumerate(questions):
            part = [j for j in range(i * self.samples, (i + 1) * self.samples) if answers[j].ended]
            right = [*dict.fromkeys(tuple(answers[j].ids) for j in part if scores[j] >= 1)]
            wrong = [*dict.fromkeys(tuple(answers[j].ids) for j in part if scores[j] < 1)]
            answer = tuple(token for token in question.right if token != eos)
            graded.append(Graded(tuple(question.prompt), answer, right, wrong))
        return graded


@dataclass(frozen=True)
class AnswerPairs(RightAnswers):
    """A right and a wrong answer of a model to each training prompt that has both.

    Held-out pairs are the right answer of the data and a wrong one of the model; the empty one if it wrote none.
    """

    sides: ClassVar[int] = 2  # answers in a sample

    def prepare(self, context: int, cache: Path | None = None) -> PreferenceCorpus:
        """Lets the model answer what is not in the cache. Raises ValueError where no prompt has both answers."""
        corpus, root = self.problems.prepare(context, cache), cache_root(cache)
        graded, identity = self.grade(corpus, corpus.train, context, root)
        pairs = [(item.prompt, item.right[0], item.wrong[0]) for item in graded if item.right and item.wrong]
        if not pairs:
            raise ValueError(
                f"data.model={self.model} answers none of {len(graded)} prompts both right and wrong: raise "
                "data.samples"
            )
        train = self._rows(pairs, ["train", identity], corpus.tokenizer, context, root)
        validation = {}
        for name, held_out in corpus.validation.items():
            graded, identity = self.grade(corpus, held_out, context, root)
            pairs = [(item.prompt, item.answer, (*item.wrong, ())[0]) for item in graded]
            validation[name] = HeldOutRows(self._rows(pairs, [name, identity], corpus.tokenizer, context, root))
        return PreferenceCorpus(
            name=corpus.name,
            config=f"{corpus.config}, {len(train)} pairs of answers of a model",
            hash=digest(["pairs of answers", identity]),
            tokenizer=corpus.tokenizer,
            train=train,
            validation=validation,
            num_tokens=train.num_tokens,
            num_bytes=train.num_bytes,
            folder=root,
        )

    def _rows(
        self,
        pairs: Sequence[tuple[Ids, Ids, Ids]],
        identity: list[object],
        tokenizer: Tokenizer,
        context: int,
        root: Path,
    ) -> PairRows:
        """Rows of pairs, each a prompt with a preferred and another answer."""

        def build(folder: Path) -> Json:
            """Writes the ids of both conversations of each pair, and the lengths of the answers."""
            sides = [(prompt, (*answer, tokenizer.eos)) for prompt, *answers in pairs for answer in answers]
            rows = (np.array([*prompt, *answer], np.int64) for prompt, answer in sides)
            write_rows(folder / "pairs", rows, id_dtype(tokenizer.vocab_size))
            lengths = np.array([len(answer) for _, answer in sides], np.int64)
            write_array(folder / "pairs.answers.npy", lengths)
            longer = np.sign(lengths[::2] - lengths[1::2])
            write_array(folder / "pairs.labels.npy", ((longer + 1) / 2).astype(np.float32))
            return {"pairs": len(pairs)}

        folder, _ = cached_folder(root, "own-pairs", {"pairs": identity}, build)
        return PairRows(folder / "pairs", context, tokenizer)
