"""A data set whose targets have been scored, and what is added to its scores by each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int

from kleiber.evals import proportion_score
from kleiber.types import Json, Model, Score, Scores
from kleiber_topics.retrieval.datastore import Hashes, StoreText, n_gram_hashes, overlap
from kleiber_topics.retrieval.items import Items, scores_of
from kleiber_topics.retrieval.knn import Retrieved, Setting, most_probable
from kleiber_topics.retrieval.scoring import Targets

EXAMPLES = 4  # of each data set and method
TAIL = 160  # characters of a prompt and of a retrieved text that are shown

Decode = Callable[[list[int]], str]


@dataclass
class Measured:
    """A data set with the scores of its targets without retrieval.

    seconds    for a target, without retrieval
    on_report  which of the items are reported; the settings of kNN-LM are chosen on the others
    """

    items: Items
    plain: Targets
    seconds: float
    on_report: Bool[np.ndarray, "rows"]
    scores: Scores = field(default_factory=dict)
    examples: list[Json] = field(default_factory=list)

    @property
    def reported(self) -> Bool[np.ndarray, "tokens"]:
        """Which of the targets are reported."""
        return self.on_report[self.plain.items]

    def add(self, method: str, scores: Scores, text: StoreText, size: int) -> None:
        """Adds the scores of a method at a size of the store, those at the largest also under its name alone."""
        if size == len(text.sizes) - 1:
            self.scores |= {f"{method}/{name}": score for name, score in scores.items()}
        if len(text.sizes) > 1:
            self.scores |= {f"{method}/tokens{text.sizes[size]}/{name}": score for name, score in scores.items()}

    def add_contamination(self, length: int, shared: Hashes) -> None:
        """Adds the share of the samples of a text that have an n-gram of `length` tokens among the sorted hashes."""
        flags = np.zeros(self.items.count, bool)
        for row in self.items.rows:
            flags[row.item] |= len(overlap(n_gram_hashes(row.ids, length), shared)) > 0
        self.scores["contamination"] = proportion_score(flags)


def knn_scores(model: Model, part: Measured, targets: Retrieved, setting: Setting) -> Scores:
    """The scores of a data set under kNN-LM."""
    log_probs, greedy = targets.mixed(setting.interpolation, setting.temperature), None
    if part.items.is_table:
        greedy = most_probable(part.plain.hidden, model.head, targets, setting) == targets.ids
    return scores_of(part.items, part.plain, log_probs, greedy, part.reported, part.plain)


def add_examples(
    part: Measured,
    method: str,
    texts: Sequence[Int[np.ndarray, "_"]],
    log_probs: torch.Tensor,
    decode: Decode,
) -> None:
    """Adds a few pieces with the text that was retrieved for them, at equal distances among those with any."""
    with_text = [i for i, text in enumerate(texts) if len(text)]
    for i in with_text[:: max(1, len(with_text) // EXAMPLES)][:EXAMPLES]:
        piece = part.items.pieces[i]
        row = part.items.rows[piece.row]
        begin = sum(int(other.scored.sum()) for other in part.items.rows[: piece.row])
        before = int(row.scored[: piece.start].sum())
        at = slice(begin + before, begin + before + int(row.scored[piece.start : piece.stop].sum()))
        part.examples.append(
            {
                "method": method,
                "before": decode(row.ids[: piece.start].tolist())[-TAIL:],
                "target": decode(row.ids[piece.start : piece.stop].tolist())[:TAIL],
                "retrieved": decode(texts[i].tolist())[:TAIL],
                "nats": -float(part.plain.log_probs[at].sum()),
                "nats_with": -float(log_probs[at].sum()),
            }
        )


def store_scores(num_bytes: int, built: float, seconds: float) -> Scores:
    """The costs of a datastore: its bytes, the seconds to build it, and the seconds for a target."""
    return {
        "store_bytes": Score(float(num_bytes)),
        "store_seconds": Score(built),
        "seconds_per_token": Score(seconds),
    }
