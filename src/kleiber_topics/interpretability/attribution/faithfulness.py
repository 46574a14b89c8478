"""Whether a ranking of tokens is faithful: what a prediction loses without the first ones, and keeps with them alone.

Deletion removes the tokens of a text in the order of their attributions, the largest first, and insertion puts them
back in that order into a text without any of them (Petsiuk et al. 2018, arXiv:1806.07421, section 3.2, for images;
DeYoung et al. 2020, arXiv:1911.03429, section 4, for text). The log-probability of the prediction after each step makes
a curve over the share of changed tokens, and the area under it is a mean log-probability in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.evals import mean_score, proportion_score
from kleiber.records import Activity
from kleiber.types import Model, Scores
from kleiber_topics.interpretability.attribution.predictions import ExplainedPredictions, chunks

Test = Literal["deletion", "insertion"]
TESTS: tuple[Test, ...] = ("deletion", "insertion")


@dataclass(frozen=True)
class Removal:
    """How tokens are removed.

    baseline  vector in the place of a removed token; None: a token of another text
    points    of a curve, at equal shares of the tokens, beside its start
    tokens    most tokens of a forward pass
    """

    model: Model
    baseline: Float[Tensor, "_"] | None
    points: int
    tokens: int
    work: Activity

    @torch.no_grad()
    def curves(
        self, predictions: ExplainedPredictions, order: Int[Tensor, "rows time"], test: Test
    ) -> Float[np.ndarray, "rows points"]:
        """The log-probability of each prediction in nats after the first j / points of its candidates, j = 0, 1, ...

        order  rank of each candidate, from 0; what other tokens have is not read
        """
        counts = predictions.candidates.sum(1)
        columns = []
        for step in range(self.points + 1):
            changed = order < (counts * step / self.points).round()[:, None]
            removed = (changed if test == "deletion" else ~changed) & predictions.candidates
            columns.append(self.log_probs(predictions, removed))
            self.work.done += len(predictions)
        return torch.stack(columns, 1).double().cpu().numpy()

    def log_probs(self, predictions: ExplainedPredictions, removed: Tensor) -> Float[Tensor, "rows"]:
        """The log-probability of each prediction without the removed tokens."""
        parts = []
        for rows in chunks(len(predictions), self.tokens // removed.shape[1]):
            part = predictions.select(torch.arange(rows.start, rows.stop, device=removed.device))
            if self.baseline is None:
                tokens = torch.where(removed[rows], part.replacement, part.batch.tokens)
                parts.append(part.with_tokens(tokens).log_probs(self.model))
            else:
                vectors = self.model.embedding(part.batch.tokens)
                vectors = torch.where(removed[rows][:, :, None], self.baseline.to(vectors.dtype), vectors)
                parts.append(part.log_probs(self.model, vectors))
        return torch.cat(parts)


def ranks(attributions: Float[Tensor, "rows time"], predictions: ExplainedPredictions) -> Int[Tensor, "rows time"]:
    """The rank of each candidate by its attribution, the largest one 0; of equal ones the later token is first."""
    values = attributions.double().masked_fill(~predictions.candidates, -torch.inf)
    return values.flip(1).argsort(dim=1, descending=True, stable=True).argsort(1).flip(1)


def random_attributions(predictions: ExplainedPredictions, seed: int) -> Float[Tensor, "rows time"]:
    """Independent uniform numbers, whose ranking is a random one."""
    random = np.random.default_rng(seed % 2**32)
    return torch.from_numpy(random.random(tuple(predictions.candidates.shape))).to(predictions.at.device)


def area(curves: Float[np.ndarray, "rows points"]) -> Float[np.ndarray, "rows"]:
    """The area under each curve over shares from 0 to 1, by the trapezoidal rule."""
    return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2


def gains(
    curves: Mapping[str, Float[np.ndarray, "rows points"]],
    random: Float[np.ndarray, "rows points"],
    test: Test,
) -> Scores:
    """The area under the curve of each method, and by how much it is better than that of a random ranking, in nats.

    For deletion a smaller area is better, for insertion a larger one. Intervals are over texts.
    """
    chance, sign = area(random), -1 if test == "deletion" else 1
    scores = {f"{test}/random": mean_score(chance)}
    for method, of_method in curves.items():
        scores[f"{test}/{method}"] = mean_score(area(of_method))
        scores[f"{test}_gain/{method}"] = mean_score(sign * (area(of_method) - chance))
    return scores


def agreement(attributions: Mapping[str, Float[Tensor, "rows time"]], predictions: ExplainedPredictions) -> Scores:
    """Spearman's rank correlation of each pair of methods over the candidates of a text, its mean over texts.

    Texts in which a method gives all tokens the same are left out.
    """
    scores: Scores = {}
    for first, second in combinations(attributions, 2):
        values = [
            rank_correlation(attributions[first][row][kept], attributions[second][row][kept])
            for row, kept in enumerate(predictions.candidates)
        ]
        defined = [value for value in values if not math.isnan(value)]
        if defined:
            scores[f"agreement/{first}/{second}"] = mean_score(defined)
    return scores


def rank_correlation(first: Float[Tensor, "time"], second: Float[Tensor, "time"]) -> float:
    """Spearman's rank correlation, with mean ranks for equal values; NaN where one of them is constant."""
    a, b = (mean_ranks(values.double().cpu().numpy()) for values in (first, second))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def mean_ranks(values: Float[np.ndarray, "time"]) -> Float[np.ndarray, "time"]:
    """The rank of each value from 0; equal values have the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[group]


def planted_scores(attributions: Mapping[str, Float[Tensor, "rows time"]], predictions: ExplainedPredictions) -> Scores:
    """How a method ranks the tokens that are known to decide the prediction, among all but the one that asks for it.

    planted_first/<method>  share of texts in which the token with the largest attribution is one of them
    planted_found/<method>  share of these tokens among as many tokens of the largest attributions
    planted_first/random    what a random ranking has on average
    """
    if predictions.causes is None:
        return {}
    places = torch.arange(predictions.candidates.shape[1], device=predictions.at.device)
    ranked = predictions.candidates & (places != predictions.at[:, None])
    causes = predictions.causes & ranked
    counts = causes.sum(1)
    scores = {"planted_first/random": mean_score((counts / ranked.sum(1)).cpu().numpy())}
    for method, values in attributions.items():
        order = values.masked_fill(~ranked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        hits = causes.gather(1, order)
        top = torch.arange(hits.shape[1], device=hits.device) < counts[:, None]
        scores[f"planted_first/{method}"] = proportion_score(hits[:, 0].double().cpu().numpy())
        scores[f"planted_found/{method}"] = proportion_score(((hits & top).sum(1) / counts).double().cpu().numpy())
    return scores
