"""Nearest-neighbor language models (kNN-LM): Khandelwal et al. 2020, arXiv:1911.00172.

A datastore has an entry for each token of a text: its key is a vector of the model at the position before the token,
its value the token. The probability of a next token is that of the model and that of the neighbors of its key, mixed:

    p(x) = (1 - interpolation) p_model(x) + interpolation p_neighbors(x)                             (equation 3)
    p_neighbors(x) = sum of the weights of neighbors with the value x, weights = softmax(-d / T)     (equation 2)

where d is the squared Euclidean distance. The temperature T is 1 there. Here it is 1 where the config says so, and else
chosen, because the size of hidden states differs between models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.evals import LOGITS
from kleiber.types import Head, Model
from kleiber_topics.retrieval.datastore import Window
from kleiber_topics.retrieval.neighbors import Neighbors
from kleiber_topics.retrieval.scoring import ScoredRow, score_rows

INTERPOLATIONS = (0.0, 0.02, 0.05, *(i / 10 for i in range(1, 10)), 0.95)
TEMPERATURES = tuple(2.0**-i for i in range(9))  # of the mean squared distance of the neighbors
VALUE_BYTES = 8

LogProbs = Float[Tensor, "tokens"]


@dataclass(frozen=True)
class Datastore:
    """Entries of a text.

    keys    vectors at the positions before the tokens
    values  the tokens
    ends    number of entries of each size
    """

    keys: Float[Tensor, "rows dim"]
    values: Int[Tensor, "rows"]
    ends: Sequence[int]

    def num_bytes(self, size: int) -> int:
        """Bytes of the keys and values of a size."""
        return self.ends[size] * entry_bytes(self.keys.shape[1])


def entry_bytes(width: int) -> int:
    """Bytes of an entry whose key has `width` numbers in fp32."""
    return 4 * width + VALUE_BYTES


def build_datastore(
    model: Model,
    windows: Sequence[Window],
    ends: Sequence[int],
    key: str,
    tokens: int,
    label: str = "computing a datastore",
    memory: int | None = None,
) -> Datastore:
    """An entry for every token of the windows but the first of each.

    ends    number of windows of each size
    key     "hidden" or "ffn" (see `score_rows`)
    tokens  most tokens of a forward pass
    label   what the progress line shows
    memory  bytes up to which the keys are in memory; more are mapped from a file; None: all are
    """
    rows = [ScoredRow(window.ids, np.arange(len(window.ids)) > 0, i) for i, window in enumerate(windows)]
    entries = score_rows(model, rows, tokens, key, label, memory)
    counts = np.cumsum([0, *(len(window.ids) - 1 for window in windows)])
    return Datastore(entries.keys, entries.ids, [int(counts[end]) for end in ends])


@dataclass(frozen=True)
class Retrieved:
    """Targets with the neighbors of their keys.

    log_probs  of the targets under the model, in nats
    ids        of the targets
    distances  squared, of the neighbors
    values     tokens of the neighbors
    """

    log_probs: LogProbs
    ids: Int[Tensor, "tokens"]
    distances: Float[Tensor, "tokens neighbors"]
    values: Int[Tensor, "tokens neighbors"]

    def __getitem__(self, chosen: Bool[np.ndarray, "tokens"]) -> Retrieved:
        """Those of some of the targets."""
        at = torch.from_numpy(chosen)
        return Retrieved(self.log_probs[at], self.ids[at], self.distances[at], self.values[at])

    def neighbor_log_probs(self, temperature: float) -> LogProbs:
        """log p_neighbors(target) in nats; minus infinity where no neighbor has the target as its value."""
        weights = (-self.distances.double() / temperature).log_softmax(1)
        return weights.masked_fill(self.values != self.ids[:, None], -torch.inf).logsumexp(1)

    def mixed(self, interpolation: float, temperature: float) -> LogProbs:
        """log p(target) of the mixture in nats; exactly that of the model for interpolation 0."""
        return mix(self.log_probs, self.neighbor_log_probs(temperature), interpolation)


def with_neighbors(
    store: Datastore, neighbors: Neighbors, log_probs: LogProbs, ids: Int[Tensor, "tokens"]
) -> Retrieved:
    """Targets with the values of their neighbors in a store."""
    return Retrieved(log_probs, ids, neighbors.distances, store.values[neighbors.entries])


def mix(model: LogProbs, neighbors: LogProbs, interpolation: float) -> LogProbs:
    """log((1 - interpolation) p_model + interpolation p_neighbors)."""
    if interpolation == 0:
        return model
    return torch.logaddexp(model + math.log1p(-interpolation), neighbors + math.log(interpolation))


@dataclass(frozen=True)
class Setting:
    """How neighbors and model are mixed."""

    interpolation: float
    temperature: float


def choose_setting(parts: Sequence[Retrieved], interpolation: float | None, temperature: float | None) -> Setting:
    """The setting of least loss, the mean over `parts` of the mean loss of each; None is what is to be chosen.

    Temperatures are tried in proportion to the mean distance of the neighbors. The best one at some interpolation above
    0 is kept, and then the interpolation chosen, 0 included.
    """
    if interpolation is not None and temperature is not None:
        return Setting(interpolation, temperature)
    scale = max(float(torch.cat([part.distances.flatten() for part in parts]).mean()), 1e-12)
    temperatures = [scale * factor for factor in TEMPERATURES] if temperature is None else [temperature]
    interpolations = INTERPOLATIONS if interpolation is None else (interpolation,)
    losses: dict[tuple[float, float], float] = {}
    for T in temperatures:
        scored = [(part.log_probs, part.neighbor_log_probs(T)) for part in parts]
        for weight in interpolations:
            means = [-float(mix(model, neighbors, weight).mean()) for model, neighbors in scored]
            losses[T, weight] = sum(means) / len(means)
    mixtures = {setting: loss for setting, loss in losses.items() if setting[1] > 0} or losses
    best = min(mixtures, key=lambda setting: mixtures[setting])[0]
    return Setting(min(interpolations, key=lambda weight: losses[best, weight]), best)


@torch.inference_mode()
def most_probable(
    hidden: Float[Tensor, "tokens dim"], head: Head, targets: Retrieved, setting: Setting
) -> Int[Tensor, "tokens"]:
    """The most probable token of the mixture at each target."""
    size, device = max(1, LOGITS // head.weight.shape[0]), head.weight.device
    chosen = []
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        probabilities = head(hidden[part].to(device)).double().softmax(1) * (1 - setting.interpolation)
        weights = (-targets.distances[part].double() / setting.temperature).softmax(1) * setting.interpolation
        chosen.append(probabilities.scatter_add(1, targets.values[part].to(device), weights.to(device)).argmax(1).cpu())
    return torch.cat(chosen)
