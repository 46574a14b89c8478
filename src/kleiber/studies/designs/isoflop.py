"""The design `isoflop`: compute budgets, each with model sizes around the compute-optimal size of a planning law.

All points of a budget cost the same FLOPs, counted exactly; one trunk of a size serves all of its budgets. Raises
ValueError where whole batches match a budget to no better than 1 %, and for a budget with fewer than four sizes.
Source: Hoffmann et al. 2022, section 3.2, arXiv:2203.15556; spans beyond 4 bias the vertex (arXiv:2603.22339)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kleiber.studies.designs.plan import Ground, Trunk, best_width, budget_flops, cells, planning_laws, widths_of

MATCHED = 0.01  # relative difference in FLOPs within a budget
LEAST = 4  # sizes of a budget that a parabola needs


class IsoFLOP:
    """Compute budgets in a geometric sequence, each with sizes from 1/span to span times its optimal size.

    flops, hours  cost of the whole design, in FLOPs or in hours of this machine at its measured speed; give one
    budgets       number of budgets
    ratio         ratio of each budget to the one below it
    sizes         sizes of each budget, as far as multiples of head_dim allow
    span          ratio of the largest size to the optimal one, and of the optimal one to the smallest
    seeds         trunks of each size
    law           path of a laws.json, or {E, A, B, alpha, beta}; null plans with the law `plan.PRIOR`
    head_dim      channels of a head; widths are its multiples
    """

    def __init__(
        self, flops: float | int | str | None = None, hours: float | int | None = None, budgets: int = 4,
        ratio: float | int = 2.0, sizes: int = 5, span: float | int = 4.0, seeds: int = 1,
        law: str | Mapping[str, float] | None = None, head_dim: int = 16,
    ) -> None:  # fmt: skip
        for name, value, least in (("budgets", budgets, 2), ("sizes", sizes, LEAST), ("seeds", seeds, 1)):
            if value < least:
                raise ValueError(f"design.{name}={value} must be >= {least}")
        if not (ratio > 1 and span > 1):
            raise ValueError(f"design.ratio={ratio} and design.span={span} must be > 1")
        self.flops, self.hours, self.budgets, self.ratio = flops, hours, budgets, float(ratio)
        self.sizes, self.span, self.seeds, self.head_dim = sizes, float(span), seeds, head_dim
        self.law = planning_laws(law, 1)[0]

    def cells(self, ground: Ground) -> list[list[str]]:
        ground = replace(ground, head_dim=self.head_dim)
        return cells(self.plan(ground), ground)

    def plan(self, ground: Ground) -> list[Trunk]:
        """The trunks of the largest design of this shape whose cost is within the budget."""
        widths = [2 * self.head_dim, 4 * self.head_dim, 8 * self.head_dim]
        allowed = budget_flops(self.flops, self.hours, ground, widths, os.cpu_count() or 1)
        low, high = allowed * 1e-4, allowed
        for _ in range(40):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self._cost(middle, ground) <= allowed else (low, middle)
        trunks = self._trunks(low, ground)
        self._check(low, trunks, ground)
        return trunks

    def compute(self, largest: float) -> list[float]:
        """The compute budgets in FLOPs, in ascending order; `largest` is the last."""
        return [largest / self.ratio**k for k in reversed(range(self.budgets))]

    def _cost(self, largest: float, ground: Ground) -> float:
        return sum(trunk.cost(ground) for trunk in self._trunks(largest, ground))

    def _trunks(self, largest: float, ground: Ground) -> list[Trunk]:
        """One trunk for each width and seed, with a branch for each budget whose span contains the width."""
        budgets = self.compute(largest)
        best = [ground.size(best_width(self.law, c, ground, self.head_dim)).active for c in budgets]
        step = self.span ** (2 / (self.sizes - 1))
        count = 1 + round(np.log(best[-1] / best[0] * self.span**2) / np.log(step))
        ladder = sorted({self._nearest(n, ground) for n in best[0] / self.span * step ** np.arange(count)})
        trunks = []
        for width in ladder:
            size = ground.size(width)
            held = [
                ground.whole(c / size.flops_per_token)
                for c, n in zip(budgets, best, strict=True)
                if n / self.span * 0.9 <= size.active <= n * self.span * 1.1
            ]
            trunks += [Trunk(width, seed, tuple(sorted(set(held)))) for seed in range(self.seeds) if held]
        return trunks

    def _nearest(self, N: float, ground: Ground) -> int:
        return min(widths_of(self.head_dim), key=lambda width: abs(np.log(ground.size(width).active / N)))

    def _check(self, largest: float, trunks: Sequence[Trunk], ground: Ground) -> None:
        budgets = self.compute(largest)
        held = dict.fromkeys(range(len(budgets)), 0)
        for trunk in (planned for planned in trunks if planned.seed == 0):
            for tokens in trunk.branches:
                flops = tokens * ground.size(trunk.width).flops_per_token
                k = int(np.argmin([abs(np.log(flops / c)) for c in budgets]))
                held[k] += 1
                if abs(flops / budgets[k] - 1) > MATCHED:
                    raise ValueError(
                        f"design=isoflop: width {trunk.width} differs from the budget of {budgets[k]:.3g} FLOPs by "
                        f"{abs(flops / budgets[k] - 1):.1%} in whole batches: increase design.flops or decrease "
                        f"batch.tokens"
                    )
        if min(held.values()) < LEAST:
            raise ValueError(
                f"design=isoflop: a budget has {min(held.values())} sizes, but a parabola needs {LEAST}: increase "
                f"design.flops or design.span, or decrease design.head_dim={self.head_dim}"
            )
