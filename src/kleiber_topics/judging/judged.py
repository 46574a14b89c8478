"""Pairs of answers that a model wrote and simulated annotators judged, for the loop model, judgments, better model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Float

from kleiber.config import Quantity, local_copy
from kleiber.data import (
    FORMAT,
    PLAIN,
    Conversation,
    Preference,
    PreferenceCorpus,
    Turn,
    cache_root,
    cached_folder,
    fingerprint,
    open_sets,
    prompts_of,
)
from kleiber.records import read_json, write_text
from kleiber.types import Count, DataPath, Json, Model, NonNegative, Positive, Seed, Tokenizer, hash_weights
from kleiber_topics.judging.annotators import Annotator, Utility
from kleiber_topics.judging.judgments import Comparison, Judgment, write_judgments

Selection = Literal["random", "likelihood", "margin"]
HELD_OUT = 0.2  # share of the prompts whose answers are for validation
LEAST_HELD_OUT = 8


@runtime_checkable
class AnswersOf(Protocol):
    """Answers of a model; see `kleiber.runs.answers.Answers`."""

    def write(
        self, prompts: Sequence[Conversation], each: int, tokens: int, temperature: float, *, seed: int
    ) -> list[list[str]]: ...
    def log_probs(self, dialogs: Sequence[Conversation]) -> Float[np.ndarray, "_ values"]: ...


@runtime_checkable
class AnsweringModel(Protocol):
    """A trained model that answers prompts; `kleiber.runs.open.TrainedModel` is one."""

    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def answers(self) -> AnswersOf: ...


@dataclass(frozen=True)
class Judged:
    """Pairs of answers of a model, judged by simulated annotators; those for validation without noise, bias and ties.

    The model writes two answers to each of `pairs` prompts, and annotators judge `judgments` of these pairs. So runs
    that differ in judgments, selection or annotators read the same answers, and the same validation pairs.

    open_model     reads a model from its folder; the run supplies it
    model          RUN, RUN/STAGE or a Hugging Face folder
    utility        what annotators prefer (`WordShare`, `Variety`)
    prompts        name or path of the data whose beginnings or questions are the prompts
    pairs          of answers that can be judged
    judgments      of different pairs, at most `pairs`
    select         the pairs that are judged: at "random"; of the greatest difference in "likelihood" per token under
                   the model; or of the smallest implicit reward "margin" of `policy`, which is least sure of them
    policy         run that was fine-tuned from `model` on earlier judgments, for the margin
    annotators     number of them, who judge pairs in turn
    noise          share of the judgments that say the opposite
    longer         utility of 100 more bytes of an answer
    first          utility of being shown on the left
    disagreement   standard deviation of the utility that an annotator alone perceives
    prompt_tokens  most tokens of a prompt that is the beginning of a text
    answer_tokens  most tokens of an answer
    temperature    at which the model answers
    seed           of prompts, answers, selection and annotators
    tokenizer, separator  those of the model
    max_bytes      at most that much text of each split is read
    """

    sides: ClassVar[int] = 2  # answers in a sample

    open_model: Callable[[str], AnsweringModel]
    model: str
    utility: Utility
    prompts: DataPath = "tinystories"
    pairs: Annotated[int, Ge(2), Le(100_000)] = 1000
    judgments: Count = 200
    select: Selection = "random"
    policy: str | None = None
    annotators: Annotated[int, Ge(1), Le(1000)] = 1
    noise: Annotated[float, Ge(0), Le(1)] = 0.0
    longer: Annotated[float, Ge(-1000), Le(1000)] = 0.0
    first: Annotated[float, Ge(-1000), Le(1000)] = 0.0
    disagreement: NonNegative = 0.0
    prompt_tokens: Count = 16
    answer_tokens: Count = 48
    temperature: Positive = 1.0
    seed: Seed = 0
    tokenizer: str = "bytes"
    separator: str | list[str] | None = None
    max_bytes: Quantity | None = None

    def __post_init__(self) -> None:
        if self.judgments > self.pairs:
            raise ValueError(
                f"data.judgments={self.judgments} must be at most data.pairs={self.pairs}: each pair is judged once"
            )
        if (self.select == "margin") != (self.policy is not None):
            raise ValueError(
                f"data.select={self.select} and data.policy={self.policy} must go together: set data.policy to a run "
                "for data.select=margin, and to nothing for another selection"
            )

    def prepare(self, context: int, cache: Path | None = None) -> PreferenceCorpus:
        """Lets the model write and the annotators judge what is not in the cache, and encodes the pairs.

        Raises ValueError, which names the key, for a model that cannot be opened or answer, and for too few prompts.
        """
        root = cache_root(cache)
        opened = self._open(self.model, "model")
        answers, weights = self._answers(opened, root)
        identity = {
            "format": FORMAT, "judged": [weights, "ties decided"], **self._settings(),
            "policy": None if self.policy is None else hash_weights(self._open(self.policy, "policy").model),
        }  # fmt: skip

        def build(folder: Path) -> Json:
            """Writes the judgments of both splits; returns what the manifest records."""
            train, validation = self._split(answers)
            chosen = self._select(train, opened)
            judged = [self._annotator(n % self.annotators).judge(comparison) for n, comparison in enumerate(chosen)]
            right = [Annotator(self.utility).judge(comparison) for comparison in chosen]
            write_judgments(folder / "train.jsonl", judged)
            write_judgments(
                folder / "validation.jsonl", [decided(Annotator(self.utility).judge(c)) for c in validation]
            )
            ties = sum(judgment.choice == "tie" for judgment in judged)
            wrong = sum(
                a.choice != b.choice and "tie" not in (a.choice, b.choice) for a, b in zip(judged, right, strict=True)
            )
            return {"judgments": len(judged), "ties": ties, "against_utility": wrong}

        folder, _ = cached_folder(root, "judged", identity, build)
        options = {"tokenizer": self.tokenizer, "separator": self.separator, "max_bytes": self.max_bytes}
        return Preference(str(folder), name="judged", splits="files", **options).prepare(context, cache)

    def _settings(self) -> Json:
        """What the judgments depend on beside the answers."""
        return {
            "judgments": self.judgments, "select": self.select, "utility": repr(self.utility), "seed": self.seed,
            "annotators": [self.annotators, self.noise, self.longer, self.first, self.disagreement],
        }  # fmt: skip

    def _open(self, path: str, key: str) -> AnsweringModel:
        try:
            return self.open_model(str(local_copy(path) or path))
        except ValueError as error:
            raise ValueError(f"data.{key}: {error}") from None

    def _answers(self, opened: AnsweringModel, root: Path) -> tuple[list[Comparison], str]:
        """Pairs of answers to all prompts, those for validation at the end, from the cache; and a hash of them."""
        held_out = max(LEAST_HELD_OUT, round(HELD_OUT * self.pairs))
        identity = {
            "format": FORMAT, "answers": hash_weights(opened.model), "tokenizer": opened.tokenizer.data_hash,
            "prompts": fingerprint(self.prompts), "count": self.pairs + held_out, "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens, "temperature": self.temperature, "seed": self.seed,
        }  # fmt: skip

        def build(folder: Path) -> Json:
            """Writes the prompts with their answers."""
            sets = open_sets(self.prompts, opened.tokenizer, opened.model.context)
            count = self.pairs + held_out
            prompts, template = prompts_of(sets[0], opened.tokenizer, 100 * count, self.prompt_tokens)
            if len(prompts) < count:
                raise ValueError(
                    f"data.prompts={self.prompts} has {len(prompts)} different prompts, and data.pairs={self.pairs} "
                    f"needs {count}, those for validation included: lower data.pairs"
                )
            order = np.random.default_rng(abs(self.seed)).permutation(len(prompts))[:count]
            chosen = [prompts[i] for i in order]
            dialogs = [[Turn(PLAIN if template == "plain" else "user", prompt)] for prompt in chosen]
            try:
                answers = opened.answers.write(dialogs, 2, self.answer_tokens, self.temperature, seed=self.seed)
            except ValueError as error:
                raise ValueError(f"data.model={self.model}: {error}") from None
            rows = [[prompt, *pair] for prompt, pair in zip(chosen, answers, strict=True)]
            write_text(folder / "answers.json", json.dumps({"template": template, "rows": rows}))
            return {}

        folder, manifest = cached_folder(root, "answers", identity, build)
        content = read_json(folder / "answers.json")
        pairs = [
            Comparison(item, prompt, left, right, "left", "right", content["template"])
            for item, (prompt, left, right) in enumerate(content["rows"])
        ]
        return pairs, manifest["files"]["answers.json"]["sha256"]

    def _split(self, comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
        """The pairs to select from, and those for validation."""
        return list(comparisons[: self.pairs]), list(comparisons[self.pairs :])

    def _select(self, comparisons: Sequence[Comparison], opened: AnsweringModel) -> list[Comparison]:
        """The pairs that are judged."""
        if self.select == "random":
            order = np.random.default_rng([abs(self.seed), 1]).permutation(len(comparisons))
        else:
            scores = np.abs(np.diff(answer_scores(opened, comparisons, mean=self.select == "likelihood"))[:, 0])
            if self.policy is not None:
                after = answer_scores(self._open(self.policy, "policy"), comparisons, mean=False)
                before = answer_scores(opened, comparisons, mean=False)
                scores = -np.abs(np.diff(after - before)[:, 0])
            order = np.argsort(-scores, kind="stable")
        return [comparisons[i] for i in order[: self.judgments]]

    def _annotator(self, number: int) -> Annotator:
        return Annotator(
            self.utility, self.noise, self.longer, self.first, self.disagreement, number, self.seed
        )  # fmt: skip


def decided(judgment: Judgment) -> Judgment:
    """The judgment with a tie decided by a coin: the answers that never tie are not the usual ones."""
    if judgment.choice != "tie":
        return judgment
    item = judgment.comparison.item
    return replace(judgment, choice="left" if np.random.default_rng(item).integers(2) else "right")


def answer_scores(
    opened: AnsweringModel, comparisons: Sequence[Comparison], mean: bool
) -> Float[np.ndarray, "pairs 2"]:
    """Log-probability of both answers of each pair under a model, in nats; of their tokens on average with `mean`."""
    dialogs = [
        [Turn(PLAIN if pair.template == "plain" else "user", pair.prompt), Turn("assistant", answer)]
        for pair in comparisons
        for answer in (pair.left, pair.right)
    ]
    values = opened.answers.log_probs(dialogs)
    scores = values[:, 0] / np.maximum(values[:, 1], 1) if mean else values[:, 0]
    return scores.reshape(-1, 2)
