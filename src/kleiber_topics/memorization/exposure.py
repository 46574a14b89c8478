"""Exposure and extraction of canaries (Carlini et al. 2019, arXiv:1802.08232, sections 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import skew, skewnorm

from kleiber.evals import Ids, Pair, encode_pairs, log_likelihoods, mean_score, proportion_score
from kleiber.types import Model, Scores, Tokenizer
from kleiber_topics.memorization.canaries import Canary

LISTED = 10_000  # candidates up to which all are ranked: a fit to 256 of 10,000 was 1.1 bits high
LARGEST_SKEW = 0.99  # of a skew-normal distribution is .995
LEAST_SPREAD = 1e-4  # nats: log-probabilities that differ by less are equal but for rounding


@dataclass(frozen=True)
class Remembered:
    """What a model knows of a canary.

    exposure   log2(candidates) - log2(rank of the secret among them), in bits
    exact      whether all candidates were ranked; otherwise a skew-normal distribution was fitted to some of them
    extracted  whether the model writes the secret after what precedes it, at temperature 0
    log_prob   of the secret, in nats
    """

    repetitions: int
    exposure: float
    exact: bool
    extracted: bool
    log_prob: float


def score_canaries(
    model: Model, tokenizer: Tokenizer, canaries: Sequence[Canary], candidates: int, tokens: int
) -> list[Remembered]:
    """Ranks the secret of each canary among other numbers of as many digits, after the same words.

    candidates  numbers that are scored of more than LISTED; of fewer, all are
    tokens      most tokens of a forward pass
    """
    random = np.random.default_rng(0)
    items = []
    for canary in canaries:
        secrets = [canary.secret, *draw_secrets(canary, candidates, random)]
        pairs = encode_pairs(tokenizer, [(canary.before, secret) for secret in secrets])
        items.append(as_documents(tokenizer, pairs))
    likelihoods = log_likelihoods(model, items, tokens, "scoring canaries")
    remembered, start = [], 0
    for canary, item in zip(canaries, items, strict=True):
        log_prob, others = likelihoods.log_probs[start], likelihoods.log_probs[start + 1 : start + len(item)]
        exact = len(item) == 10**canary.digits
        bits = ranked_exposure(log_prob, others) if exact else fitted_exposure(log_prob, others, canary.digits)
        extracted = bool(likelihoods.greedy[start])
        remembered.append(Remembered(canary.repetitions, bits, exact, extracted, float(log_prob)))
        start += len(item)
    return remembered


def draw_secrets(canary: Canary, count: int, random: np.random.Generator) -> list[str]:
    """Other secrets that a canary might have had: all up to LISTED, otherwise `count` different ones at random."""
    space, secret = 10**canary.digits, int(canary.secret)
    if space <= max(LISTED, count + 1):
        numbers = [number for number in range(space) if number != secret]
    else:
        drawn = dict.fromkeys(random.integers(space, size=2 * count + 16).tolist())
        drawn.pop(secret, None)
        numbers = [*drawn][:count]
    return [f"{number:0{canary.digits}d}" for number in numbers]


def as_documents(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with the token in front of each context that begins a document in training."""
    before = tokenizer.separator.before
    begin: Ids = [] if before is None else [before]
    return [(context if context[:1] == begin else begin + context, text) for context, text in pairs]


def ranked_exposure(log_prob: float, others: Float[np.ndarray, "_"]) -> float:
    """Exposure of a secret that was ranked among all others, in bits (definition 5).

    A tie has the mean of the ranks that it is about: where all are equal, the exposure is 1 bit, as with the fit.
    """
    greater, at_least = (int((others > log_prob + margin).sum()) for margin in (LEAST_SPREAD, -LEAST_SPREAD))
    return math.log2(len(others) + 1) - math.log2(1 + (greater + at_least) / 2)


def fitted_exposure(log_prob: float, others: Float[np.ndarray, "_"], digits: int) -> float:
    """Exposure in bits from some of the other secrets: -log2 of the share that a fitted distribution has above.

    The distribution of log p is skew-normal (section 4.3), fitted by its first three moments. The result is between 0
    and log2 of the number of candidates, which is that of the first rank.
    """
    spread = max(float(others.std()), LEAST_SPREAD)
    g = float(np.clip(skew(others), -LARGEST_SKEW, LARGEST_SKEW)) if spread > LEAST_SPREAD else 0.0
    size = abs(g) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * size / (size + ((4 - math.pi) / 2) ** (2 / 3))), g)
    scale = spread / math.sqrt(1 - 2 * delta**2 / math.pi)
    place = float(others.mean()) - scale * delta * math.sqrt(2 / math.pi)
    above = float(skewnorm.sf(log_prob, delta / math.sqrt(1 - delta**2), place, scale))
    return float(np.clip(-math.log2(max(above, 10.0**-digits)), 0, digits * math.log2(10)))


def canary_scores(remembered: Sequence[Remembered]) -> Scores:
    """Mean exposure and share of extracted canaries, for each number of repetitions."""
    scores: Scores = {}
    for repetitions in sorted({canary.repetitions for canary in remembered}):
        group = [canary for canary in remembered if canary.repetitions == repetitions]
        scores[f"exposure/{repetitions}"] = mean_score([canary.exposure for canary in group])
        scores[f"extracted/{repetitions}"] = proportion_score([canary.extracted for canary in group])
    return scores
