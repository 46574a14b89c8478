"""The design `simplex`: mixtures of domains that fill the simplex, each trained with every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge, MinLen

from kleiber.config import Quantity, quantity
from kleiber.studies import Array
from kleiber.studies.designs import Cell, Level, SweepContext, combine, seed_levels
from kleiber.types import Count, Positive

CANDIDATES = 4096  # random mixtures, from which the design chooses
PARTS = 50  # weights are multiples of 1 / PARTS, so that blocks of the data have them exactly


class Simplex:
    """Trains mixtures of several domains that are far from each other, then others that are drawn at random.

    The first mixture is the proportional one, or the center without `tokens`. Each further one is the farthest of
    random mixtures from those before it. A law of mixtures is fitted to these; `held_out` mixtures, drawn uniformly,
    test it, and have `study.arm=held_out`, the others `study.arm=fitted`.

    domains   names of the parts, as in `data.parts`
    mixtures  number of mixtures to fit a law to
    held_out  number of mixtures to test it with
    tokens    tokens of each domain, by name; null: they are not limited
    epochs    how often a run of `budget` tokens may repeat a domain of `tokens`, which bounds its weight
    budget    training tokens of a run; needed with `tokens`
    seeds     runs of each mixture
    draw      seed of the random mixtures
    """

    def __init__(
        self,
        domains: Annotated[Sequence[str], MinLen(2)],
        mixtures: Annotated[int, Ge(3)] = 32,
        held_out: Annotated[int, Ge(0)] = 8,
        tokens: Mapping[str, Quantity] | None = None,
        epochs: Positive = 4.0,
        budget: Quantity | None = None,
        seeds: Count = 1,
        draw: Annotated[int, Ge(0)] = 0,
    ) -> None:
        if len(set(domains)) < len(domains):
            raise ValueError(f"design.domains={list(domains)} must list no domain twice")
        if mixtures < len(domains) + 1:
            raise ValueError(
                f"design.mixtures={mixtures} must be >= {len(domains) + 1} for {len(domains)} domains, because a law "
                "is not determined by fewer"
            )
        self.domains, self.counts, self.seeds, self.draw = list(domains), (mixtures, held_out), seeds, draw
        self.largest, self.center = np.ones(len(domains)), np.full(len(domains), 1 / len(domains))
        if tokens is not None:
            if budget is None or set(tokens) != set(domains):
                raise ValueError("design.tokens needs design.budget, and the tokens of each of design.domains")
            sizes = np.array([float(quantity(tokens[name])) for name in domains])
            self.largest = np.minimum(epochs * sizes / float(quantity(budget)), 1.0)
            self.center = sizes / sizes.sum()
            if self.largest.sum() < 1 + len(domains) / PARTS:
                raise ValueError(
                    f"design.epochs={epochs:g}: {epochs:g} epochs of all design.tokens are fewer than design.budget="
                    f"{budget}: raise design.epochs or lower design.budget"
                )

    def weights(self) -> Array:
        """Returns the mixtures (mixtures + held_out, domains), multiples of 1 / PARTS, those of the law first."""
        rng = np.random.default_rng(self.draw)
        drawn = np.unique(_rounded(rng.dirichlet(np.ones(len(self.domains)), size=CANDIDATES)), axis=0)
        corners = _rounded(np.eye(len(self.domains)))
        candidates = np.unique(np.concatenate([drawn, corners]), axis=0)
        candidates = candidates[(candidates <= self.largest + 1e-9).all(1)]
        center = _rounded(self.center[None])
        chosen = center if (center <= self.largest + 1e-9).all() else candidates[:1]
        candidates = candidates[(candidates != chosen).any(1)]
        if len(candidates) < sum(self.counts):
            raise ValueError(
                f"design.mixtures={self.counts[0]} and design.held_out={self.counts[1]}: only {len(candidates)} "
                f"mixtures in steps of {1 / PARTS:g} keep within design.epochs: raise it, or lower the numbers"
            )
        away = np.linalg.norm(candidates - chosen[0], axis=1)
        for _ in range(self.counts[0] - 1):
            farthest = int(np.argmax(away))
            chosen = np.concatenate([chosen, candidates[farthest : farthest + 1]])
            away = np.minimum(away, np.linalg.norm(candidates - candidates[farthest], axis=1))
        rest = candidates[away > 0]
        return np.concatenate([chosen, rest[rng.permutation(len(rest))[: self.counts[1]]]])

    def cells(self, context: SweepContext | None = None) -> list[Cell]:
        """Returns the overrides of each cell, one seed after another."""
        mixtures = []
        for number, row in enumerate(self.weights()):
            parts = ",".join(f"{name}:{weight:g}" for name, weight in zip(self.domains, row, strict=True))
            arm = "fitted" if number < self.counts[0] else "held_out"
            mixtures.append(Level({"data": "mixture", "data.parts": f"{{{parts}}}", "study.arm": arm}))
        return combine(mixtures, seed_levels(self.seeds), slow=1)


def _rounded(mixtures: Array) -> Array:
    """Rounds mixtures (rows, domains) to multiples of 1 / PARTS that sum to 1, by largest remainders."""
    exact = mixtures * PARTS
    whole = np.floor(exact + 1e-9)
    missing = np.round(PARTS - whole.sum(1)).astype(int)
    rank = np.argsort(np.argsort(-(exact - whole), axis=1, kind="stable"), axis=1)
    return (whole + (rank < missing[:, None])) / PARTS
