"""Membership inference: telling samples that a model was trained on from held-out samples of the same distribution.

loss   log p of the sample per target (Yeom et al. 2018, arXiv:1709.01604)
min_k  mean of the least share k of the log-probabilities of its tokens (Shi et al. 2024, arXiv:2310.16789)
zlib   log p per bit of the compressed text (Carlini et al. 2021, arXiv:2012.07805)
blind  the size of the compressed text, without a model: it tells nothing about members unless both sets of samples
       differ in more than membership (Das et al. 2024, arXiv:2406.16201)

Of each, a higher value speaks for a member.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm, rankdata

from kleiber.evals import LEVEL, RESAMPLES, percentile_score
from kleiber.nn import log_probs, target_weights
from kleiber.objectives import next_token_inputs
from kleiber.types import Batch, Model, Score, Scores, Tokenizer

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
