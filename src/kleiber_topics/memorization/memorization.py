"""The evaluation `memorization`: exposure of canaries, verbatim training text, and membership inference."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Gt, Le
from jaxtyping import Int

from kleiber.data import DataSet, Permutation
from kleiber.evals import (
    Evaluation,
    Pair,
    Results,
    Subject,
    log_likelihoods,
    pass_tokens,
    proportion_score,
    training_parts,
)
from kleiber.types import Batch, Count, Json, Metric, Metrics, Samples, Score, Scores
from kleiber_topics.memorization.canaries import Canary, CanaryCorpus
from kleiber_topics.memorization.exposure import canary_scores, score_canaries
from kleiber_topics.memorization.membership import attack_values, membership_scores, without_canaries

if TYPE_CHECKING:
    from altair import TopLevelMixin

log = logging.getLogger(__name__)

CANARIES = "canaries"  # name of their scores, where data sets have theirs
LONGEST = 50  # tokens of a prefix and of a continuation, by default


class Memorization(Evaluation):
    """Memorized canaries and text, and membership inference, of a run whose training text is known.

    For the canaries of `data=canaries`, by number of repetitions:

    exposure/<r>   log2(candidates) - log2(rank of the secret), in bits: chance has 1.44 on average (log2 of e)
    extracted/<r>  share whose secret the model writes, at temperature 0, after what precedes it

    For each data set of the run, from samples of the training text that it has read, and as many held-out ones:

    extracted/train, extracted/held_out  share of the samples in which the model continues a prefix word for word
    membership_auc/<attack>  probability that a training sample has a higher value than a held-out one
    membership_tpr/<attack>  share of training samples above all but 1 % of the held-out ones

    The attacks are loss, min_k and zlib (see `membership`); membership_auc/blind needs no model: where its interval
    leaves out .5, training and held-out samples differ in themselves, and the other areas are no membership. Samples
    with a piece of a canary are left out.

    candidates    secrets to which a skew-normal distribution is fitted if there are more than 10,000; the rank of a
                  canary with up to four digits is exact, among all of them
    samples       of the training text, and of the held-out text
    prefix        tokens that the model reads of a sample before it continues; null: half of the context, at most 50
    continuation  tokens that must be equal; null: half of the context, at most 50
    min_k         share of the tokens that the attack min_k reads
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "exposure/{repetitions}": Metric("exposure after {repetitions} repetitions", "lower", "bits"),
        "extracted/train": Metric("share of training samples extracted", "lower"),
        "extracted/held_out": Metric("share of held-out samples extracted", "none"),
        "extracted/{repetitions}": Metric("share of canaries extracted after {repetitions} repetitions", "lower"),
        "membership_auc/blind": Metric("membership AUC without a model", "none"),
        "membership_auc/{attack}": Metric("membership AUC by {attack}", "lower"),
        "membership_tpr/{attack}": Metric("true positive rate of membership inference by {attack}", "lower"),
    }
    reads = "the training and validation text of a run"

    def __init__(
        self,
        candidates: Count = 512,
        samples: Count = 512,
        prefix: Count | None = None,
        continuation: Count | None = None,
        min_k: Annotated[float, Gt(0), Le(1)] = 0.2,
    ) -> None:
        self.candidates, self.samples, self.min_k = candidates, samples, min_k
        self.prefix, self.continuation = prefix, continuation

    def accepts(self, data: DataSet) -> bool:
        """Whether the data is held-out text of the run itself."""
        return data.of_run

    def evaluate(self, subject: Subject) -> Results:
        """Scores the canaries of the run, and samples of each of its data sets."""
        pairs = paired_samples(subject)
        model, tokens = subject.model, pass_tokens(subject.model, subject.rows)
        scores: dict[str, Scores] = {}
        details: Json = {"samples": {}}
        canaries = canaries_of(subject)
        if canaries:
            remembered = score_canaries(model, subject.tokenizer, canaries, self.candidates, tokens)
            scores[CANARIES] = canary_scores(remembered)
            details[CANARIES] = [asdict(canary) for canary in remembered]
        for pair in pairs:
            scores[pair.name], details["samples"][pair.name] = self.score_samples(subject, pair)
        return Results(scores, details)

    def score_samples(self, subject: Subject, pair: PairedSamples) -> tuple[Scores, Json]:
        """Verbatim extraction and membership inference on one data set, and the values of each sample."""
        count = self.samples
        if subject.tokens is not None:
            count = min(count, max(2, subject.tokens // subject.model.context))
        texts = [canary.text for canary in canaries_of(subject)]
        chosen = {"train": pair.train, "held_out": pair.held_out}
        rows = {name: choose_rows(samples, count, subject, texts) for name, samples in chosen.items()}
        fewest = min(map(len, rows.values()))
        if fewest < 2:
            raise ValueError(
                f"evals.memorization needs at least 2 samples of training and of held-out text, and {pair.name} has "
                f"{fewest}: use more data"
            )
        scores: Scores = {}
        values = {}
        for name, index in rows.items():
            scores[f"extracted/{name}"] = self.extracted(subject, chosen[name], index)
            batches = batches_of(subject, chosen[name], index)
            values[name] = attack_values(subject.model, subject.tokenizer, batches, self.min_k)
        scores |= membership_scores(values["train"], values["held_out"])
        blind = scores["membership_auc/blind"]
        if blind.lo is not None and blind.hi is not None and not blind.lo <= 0.5 <= blind.hi:
            log.warning(
                "evaluation memorization: the compressed size alone tells training from held-out samples of %s (AUC "
                "%.3f to %.3f), so they are not of one distribution, and membership_auc may measure that",
                pair.name, blind.lo, blind.hi,
            )  # fmt: skip
        losses = {name: (-attacks["loss"]).tolist() for name, attacks in values.items()}
        return scores, losses

    def extracted(self, subject: Subject, samples: Samples, index: Int[np.ndarray, "_"]) -> Score:
        """Share of the samples whose continuation the model writes word for word at temperature 0.

        Raises ValueError for a prefix and a continuation that are longer than a sample.
        """
        context = subject.model.context
        prefix = min(LONGEST, context // 2) if self.prefix is None else self.prefix
        length = min(LONGEST, context // 2) if self.continuation is None else self.continuation
        if prefix + length > context + 1:
            raise ValueError(
                f"evals.memorization.prefix={prefix} and continuation={length} must be <= {context + 1} together, the "
                "tokens of a sample"
            )
        items: list[list[Pair]] = []
        for batch in batches_of(subject, samples, index):
            for row, size in zip(batch.tokens.tolist(), row_lengths(batch), strict=True):
                if size >= prefix + length:
                    items.append([(row[:prefix], row[prefix : prefix + length])])
        if not items:
            raise ValueError(f"evals.memorization.prefix={prefix} and continuation={length}: all samples are shorter")
        tokens = pass_tokens(subject.model, subject.rows)
        return proportion_score(log_likelihoods(subject.model, items, tokens, "continuing samples").greedy)

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber_topics.memorization.figures import memorization_charts

        return memorization_charts(results)


@dataclass(frozen=True)
class PairedSamples:
    """Training and held-out samples of one data set."""

    name: str
    train: Samples
    held_out: Samples


def paired_samples(subject: Subject) -> list[PairedSamples]:
    """The training samples that a run has read, with the held-out samples of the same data.

    Parts of a mixture of which it has read nothing are left out. Raises ValueError where the training samples are not
    known, or do not correspond to the held-out ones.
    """
    if subject.train is None or not len(subject.train):
        raise ValueError("evals.memorization needs the training text of the model: evaluate a run of kleiber")
    parts = training_parts(subject)
    if not parts:
        names = ", ".join(data.name for data in subject.validation)
        raise ValueError(
            f"evals.memorization compares training and held-out text of the same data, and the training text of this "
            f"run is not divided into {names}: train on one of them"
        )
    if subject.reading is None:
        log.warning(
            "evaluation memorization: which training samples the model has read is not known, so they are drawn from "
            "all; those that it has not read make it look as if it had less memory"
        )
    sets = subject.validation
    return [PairedSamples(data.name, parts[data.name], data.samples()) for data in sets if data.name in parts]


def canaries_of(subject: Subject) -> Sequence[Canary]:
    """The secrets that were planted in the training text of the run."""
    return subject.corpus.canaries if isinstance(subject.corpus, CanaryCorpus) else ()


def choose_rows(samples: Samples, count: int, subject: Subject, canaries: Sequence[str]) -> Int[np.ndarray, "_"]:
    """Numbers of `count` random samples that are as long as the context, without those that have pieces of canaries.

    Samples of unequal length, such as conversations, may have any length.
    """
    index = Permutation(len(samples), 0)(np.arange(min(2 * count, len(samples))))
    lengths, texts = [], []
    for batch in batches_of(subject, samples, index):
        lengths += row_lengths(batch)
        texts += [subject.tokenizer.decode(row) for row in batch.tokens.tolist()]
    if not samples.padded:
        whole = [i for i, length in enumerate(lengths) if length == max(lengths)]
        index, texts = index[whole], [texts[i] for i in whole]
    return index[without_canaries(texts, canaries)][:count]


def batches_of(subject: Subject, samples: Samples, index: Int[np.ndarray, "_"]) -> Iterator[Batch]:
    """Batches of the samples of these numbers, in order."""
    for start in range(0, len(index), subject.rows):
        yield samples.gather(index[start : start + subject.rows]).to(subject.device)


def row_lengths(batch: Batch) -> list[int]:
    """Tokens of each row, without padding."""
    if batch.real is None:
        return [batch.tokens.shape[1]] * len(batch)
    return batch.real.sum(1).tolist()
