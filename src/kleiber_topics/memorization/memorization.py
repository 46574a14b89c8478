"""The evaluation `memorization`: exposure of canaries, verbatim training text, and membership inference.

Membership inference tells samples that a model was trained on from held-out samples of the same distribution:

loss   log p of the sample per target (Yeom et al. 2018, arXiv:1709.01604)
min_k  mean of the least share k of the log-probabilities of its tokens (Shi et al. 2024, arXiv:2310.16789)
zlib   log p per bit of the compressed text (Carlini et al. 2021, arXiv:2012.07805)
blind  the size of the compressed text, without a model: it tells nothing about members unless both sets of samples
       differ in more than membership (Das et al. 2024, arXiv:2406.16201)

Of each, a higher value speaks for a member.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Le
from jaxtyping import Float, Int
from scipy.stats import norm, rankdata

from kleiber.data import DataSet, Permutation
from kleiber.evals import (
    LEVEL,
    RESAMPLES,
    Evaluation,
    Pair,
    Results,
    Subject,
    log_likelihoods,
    pass_tokens,
    percentile_score,
    proportion_score,
    training_parts,
)
from kleiber.nn import log_probs, target_weights
from kleiber.objectives import next_token_inputs
from kleiber.types import Batch, Count, Json, Metric, Metrics, Model, Samples, Score, Scores, Tokenizer
from kleiber_topics.memorization.canaries import Canary, CanaryCorpus
from kleiber_topics.memorization.exposure import canary_scores, score_canaries

if TYPE_CHECKING:
    from altair import TopLevelMixin

log = logging.getLogger(__name__)

CANARIES = "canaries"  # name of their scores, where data sets have theirs
LONGEST = 50  # tokens of a prefix and of a continuation, by default
Values = Float[np.ndarray, "_"]
ATTACKS = ("loss", "min_k", "zlib", "blind")
FALSE_POSITIVES = 0.01  # share of held-out samples that are taken for members


@torch.compiler.set_stance("force_eager")
@torch.inference_mode()
def attack_values(model: Model, tokenizer: Tokenizer, batches: Iterable[Batch], share: float) -> dict[str, Values]:
    """The value of each attack for each sample of the batches.

    share  of the tokens of a sample that `min_k` reads
    """
    rows: list[list[float]] = []
    for batch in batches:
        hidden, targets, weights = model(next_token_inputs(batch)).hidden, batch.tokens[:, 1:], target_weights(batch)
        scores = log_probs(hidden, model.head, targets).double()
        counted = torch.ones_like(scores, dtype=torch.bool) if weights is None else weights > 0
        for row_scores, row_counted, ids in zip(scores.cpu(), counted.cpu(), targets.cpu(), strict=True):
            values = row_scores[row_counted].numpy()
            if len(values):
                text = tokenizer.decode(ids[row_counted].tolist())
                rows.append(sample_values(values, text, share))
    return dict(zip(ATTACKS, np.array(rows).reshape(-1, len(ATTACKS)).T, strict=True))


def sample_values(token_log_probs: Values, text: str, share: float) -> list[float]:
    """The value of each attack for one sample, in the order of ATTACKS."""
    least = np.sort(token_log_probs)[: max(1, round(share * len(token_log_probs)))]
    bits = 8 * len(zlib.compress(text.encode()))
    return [float(token_log_probs.mean()), float(least.mean()), float(token_log_probs.sum()) / bits, -float(bits)]


def membership_scores(members: Mapping[str, Values], others: Mapping[str, Values]) -> Scores:
    """AUC of each attack with its interval, and its true-positive rate at one false positive in a hundred."""
    scores: Scores = {}
    for attack in members:
        scores[f"membership_auc/{attack}"] = auc(members[attack], others[attack])
        if attack != "blind":
            scores[f"membership_tpr/{attack}"] = true_positive_rate(members[attack], others[attack])
    return scores


def auc(members: Values, others: Values) -> Score:
    """P(value of a member > that of another sample), ties count half, with DeLong's interval (Biometrics 1988).

    It counts samples as independent; windows of one document are not quite so.
    """
    m, n = len(members), len(others)
    together = rankdata(np.concatenate([members, others]))
    area = (together[:m].sum() / m - (m + 1) / 2) / n
    of_members = (together[:m] - rankdata(members)) / n
    of_others = 1 - (together[m:] - rankdata(others)) / m
    if min(m, n) < 2:
        return Score(float(area), None, None, m + n)
    half = float(norm.ppf((1 + LEVEL) / 2)) * float(np.sqrt(of_members.var(ddof=1) / m + of_others.var(ddof=1) / n))
    return Score(float(area), max(0.0, float(area) - half), min(1.0, float(area) + half), m + n)


def true_positive_rate(members: Values, others: Values) -> Score:
    """Share of members above a threshold that at most 1 % of the other samples pass; bootstrap over both."""
    random = np.random.default_rng(0)
    rates = []
    for _ in range(RESAMPLES // 4):
        resampled = members[random.integers(len(members), size=len(members))]
        rates.append(_rate(resampled, others[random.integers(len(others), size=len(others))]))
    return percentile_score(_rate(members, others), rates, len(members) + len(others))


def _rate(members: Values, others: Values) -> float:
    allowed = int(FALSE_POSITIVES * len(others))
    threshold = np.partition(others, -1 - allowed)[-1 - allowed]
    return float((members > threshold).mean())


def without_canaries(texts: Sequence[str], canaries: Sequence[str], length: int = 16) -> list[int]:
    """The numbers of the texts that contain no piece of `length` characters of a canary."""
    pieces = {canary[i : i + length] for canary in canaries for i in range(max(1, len(canary) - length + 1))}
    if not pieces:
        return [*range(len(texts))]

    def contains(text: str) -> bool:
        return any(text[i : i + length] in pieces for i in range(len(text) - length + 1))

    return [number for number, text in enumerate(texts) if not contains(text)]


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
