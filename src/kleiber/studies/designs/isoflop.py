"""The design `isoflop`: compute budgets, each with model sizes around the predicted compute-optimal size.

All runs of a budget cost the same FLOPs, counted exactly, to within 1 %. Each model size is trained as one trunk (a run
at a constant learning rate) with one cooldown for each budget. Every budget needs at least four sizes for a parabola.
Source: Hoffmann et al. 2022, section 3.2, arXiv:2203.15556; a span above 4 biases the minimum (arXiv:2603.22339)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kleiber.studies.designs.plan import SweepContext, Trunk, best_width, budget_flops, cells, planning_laws, widths_of

TOLERANCE = 0.01  # largest relative difference between the FLOPs of a run and its budget
MIN_SIZES = 4  # fewest model sizes to which a parabola is fitted


class IsoFLOP:
    """Compute budgets in a geometric sequence; the sizes of each range from 1/span to span times its optimal size.

    flops, hours  cost of the whole design, in FLOPs or in hours on this machine at its measured speed; set one of the
                  two
    budgets       number of compute budgets
    ratio         ratio of each budget to the next smaller one
    sizes         model sizes of each budget; fewer are trained where two of them round to the same multiple of head_dim
    span          ratio of the largest size to the optimal size, and of the optimal size to the smallest
    seeds         trunks of each size, one for each seed
    law           law that predicts the optimal sizes: path of a laws.json, or {E, A, B, alpha, beta}; null is
                  `plan.PRIOR`
    head_dim      channels of an attention head; every width is a multiple of it
    """

    def __init__(
        self, flops: float | int | str | None = None, hours: float | int | None = None, budgets: int = 4,
        ratio: float | int = 2.0, sizes: int = 5, span: float | int = 4.0, seeds: int = 1,
        law: str | Mapping[str, float] | None = None, head_dim: int = 16,
    ) -> None:  # fmt: skip
        for name, value, least in (("budgets", budgets, 2), ("sizes", sizes, MIN_SIZES), ("seeds", seeds, 1)):
            if value < least:
                raise ValueError(f"design.{name}={value} must be >= {least}")
        if not (ratio > 1 and span > 1):
            raise ValueError(f"design.ratio={ratio} and design.span={span} must be > 1")
        self.flops, self.hours, self.budgets, self.ratio = flops, hours, budgets, float(ratio)
        self.sizes, self.span, self.seeds, self.head_dim = sizes, float(span), seeds, head_dim
        self.law = planning_laws(law, 1)[0]

    def cells(self, context: SweepContext) -> list[list[str]]:
        context = replace(context, head_dim=self.head_dim)
        return cells(self.plan(context), context)

    def plan(self, context: SweepContext) -> list[Trunk]:
        """Returns the trunks of the most expensive design with these settings that costs at most `flops` or `hours`."""
        widths = [2 * self.head_dim, 4 * self.head_dim, 8 * self.head_dim]
        allowed = budget_flops(self.flops, self.hours, context, widths, os.cpu_count() or 1)
        low, high = allowed * 1e-4, allowed
        for _ in range(40):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self._cost(middle, context) <= allowed else (low, middle)
        trunks = self._trunks(low, context)
        self._check(low, trunks, context)
        return trunks

    def compute(self, largest: float) -> list[float]:
        """Returns the compute budgets in FLOPs in ascending order; `largest` is the last of them."""
        return [largest / self.ratio**k for k in reversed(range(self.budgets))]

    def _cost(self, largest: float, context: SweepContext) -> float:
        return sum(trunk.cost(context) for trunk in self._trunks(largest, context))

    def _trunks(self, largest: float, context: SweepContext) -> list[Trunk]:
        """Returns a trunk for each width and seed, with a cooldown for each budget whose range of sizes contains it."""
        budgets = self.compute(largest)
        best = [context.size(best_width(self.law, c, context, self.head_dim)).active for c in budgets]
        step = self.span ** (2 / (self.sizes - 1))
        count = 1 + round(np.log(best[-1] / best[0] * self.span**2) / np.log(step))
        ladder = sorted({self._nearest(n, context) for n in best[0] / self.span * step ** np.arange(count)})
        trunks = []
        for width in ladder:
            size = context.size(width)
            held = [
                context.round_to_batches(c / size.flops_per_token)
                for c, n in zip(budgets, best, strict=True)
                if n / self.span * 0.9 <= size.active <= n * self.span * 1.1
            ]
            trunks += [Trunk(width, seed, tuple(sorted(set(held)))) for seed in range(self.seeds) if held]
        return trunks

    def _nearest(self, N: float, context: SweepContext) -> int:
        return min(widths_of(self.head_dim), key=lambda width: abs(np.log(context.size(width).active / N)))

    def _check(self, largest: float, trunks: Sequence[Trunk], context: SweepContext) -> None:
        budgets = self.compute(largest)
        held = dict.fromkeys(range(len(budgets)), 0)
        for trunk in (planned for planned in trunks if planned.seed == 0):
            for tokens in trunk.branches:
                flops = tokens * context.size(trunk.width).flops_per_token
                k = int(np.argmin([abs(np.log(flops / c)) for c in budgets]))
                held[k] += 1
                if abs(flops / budgets[k] - 1) > TOLERANCE:
                    raise ValueError(
                        f"design=isoflop: a run of model.width={trunk.width} misses its budget of {budgets[k]:.3g} "
                        f"FLOPs by {abs(flops / budgets[k] - 1):.1%} after rounding to whole batches, at most "
                        f"{TOLERANCE:.0%} is allowed: increase design.flops or decrease batch.tokens"
                    )
        if min(held.values()) < MIN_SIZES:
            raise ValueError(
                f"design=isoflop: one compute budget has only {min(held.values())} model sizes, but fitting its "
                f"parabola needs {MIN_SIZES}: increase design.flops or design.span, or decrease "
                f"design.head_dim={self.head_dim}"
            )
