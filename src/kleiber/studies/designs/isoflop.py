"""The design `isoflop`: several model sizes at each of several compute budgets.

A plan is a list of trunks. A trunk is a run at a constant learning rate, with a width, a seed and the token counts at
which cooldowns branch off. `cells` converts a plan to overrides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from kleiber.config.model_size import RECURRENT, available_cores
from kleiber.config.stages import Quantity, quantity
from kleiber.studies.designs.design import Cell, Level, SweepContext, combine
from kleiber.studies.laws.allocation import is_additive
from kleiber.studies.laws.catalog import chinchilla
from kleiber.studies.laws.laws_json import law_of, read
from kleiber.types import Count, NonNegative, Positive, Width

Law = Mapping[str, float]
# The prior law where design.law=null: fitted to five widths (36k to 437k parameters) trained on 8 MB of byte-level
# documentation. The law of multirun/golden has similar exponents (alpha .494, beta .431).
PRIOR: Law = {"E": 0.977, "A": 84.3, "B": 166.6, "alpha": 0.507, "beta": 0.427}
TOLERANCE = 0.01  # largest relative difference between the FLOPs of a run and its budget
MIN_SIZES = 4  # fewest model sizes to which a parabola is fitted


@dataclass(frozen=True)
class Trunk:
    width: int
    seed: int
    branches: tuple[int, ...]

    def cost(self, context: SweepContext) -> float:
        """Returns the FLOPs of the trunk to its longest branch and all cooldowns, or of all runs without branches."""
        total = sum(self.branches)
        tokens = (1 - context.decay) * max(self.branches) + context.decay * total if context.branched else total
        return tokens * context.size(self.width).flops_per_token


def cells(plan: Sequence[Trunk], context: SweepContext) -> list[Cell]:
    """Returns the overrides of each cell, cheap ones first: one for each trunk, or for each point without branches."""
    mixing = str((context.model.get("attention") or {}).get("_target_", ""))
    has_heads = context.model.get("_target_") != RECURRENT and not mixing.endswith("NoMixing")
    planned = []
    for trunk in sorted(plan, key=lambda trunk: trunk.cost(context)):
        heads = {}
        if context.head_dim is not None and has_heads:
            heads = {"model.num_heads": trunk.width // context.head_dim}
        branches = list(trunk.branches)
        lengths = {"stages.branches": [branches]} if context.branched else {"budget.tokens": branches}
        planned.append(Level({"model.width": trunk.width, **heads, **lengths, "seed": trunk.seed}))
    return combine(planned)


def planning_law(law: str | Mapping[str, float] | None) -> Law:
    """Returns the law to plan with.

    law  path of a laws.json, a mapping with E, A, B, alpha and beta, or None for `PRIOR`

    Raises ValueError for a law without these parameters.
    """
    if law is None:
        return PRIOR
    if isinstance(law, str):
        record = read(law)
        params = {name: entry["value"] for name, entry in record.get("params", {}).items()}
        if "E" not in params or not is_additive(law_of(record)):
            raise ValueError(
                f"design.law={law} must be the laws.json of one law L = E + A N^-alpha + B D^-beta, such as chinchilla"
            )
        return {"beta": params["alpha"], **params}
    if not set(PRIOR) <= set(law):
        raise ValueError(f"design.law={dict(law)} must have the keys {{E: .., A: .., B: .., alpha: .., beta: ..}}")
    return {name: float(law[name]) for name in PRIOR}


def widths_of(head_dim: int) -> list[int]:
    """Returns the widths that a design may choose: 2 to 128 heads, since models with one head deviate from the law."""
    return [head_dim * heads for heads in range(2, 129)]


def best_width(law: Law, flops: float, context: SweepContext, head_dim: int) -> int:
    """Returns the multiple of `head_dim` whose model has the least loss under `law` for `flops` training FLOPs."""
    widths = np.array(widths_of(head_dim))
    sizes = [context.size(int(width)) for width in widths]
    N, per_token = np.array([(size.active, size.flops_per_token) for size in sizes]).T
    losses = np.asarray(chinchilla(N, flops / per_token, **law))
    return int(widths[losses.argmin()])


def budget_flops(
    flops: float | str | None, hours: float | None, context: SweepContext, widths: Sequence[int], workers: int
) -> float:
    """Returns the budget of a design in FLOPs.

    `hours` are converted by the measured speed of this machine at `widths`, with `workers` runs at a time.

    Raises ValueError unless exactly one of `flops` and `hours` is set.
    """
    if (flops is None) == (hours is None):
        raise ValueError("set exactly one of design.flops and design.hours, the budget of the whole design")
    if flops is not None:
        return quantity(flops)
    assert hours is not None
    speeds = context.speed(widths)
    return float(np.exp(np.mean(np.log(speeds)))) * 3600 * quantity(hours) * workers


class IsoFLOP:
    """Compute budgets in a geometric sequence; the sizes of each range from 1/span to span times its optimal size.

    All runs of a budget cost the same FLOPs, counted exactly, to within 1 %. Each model size is trained as one trunk
    with one cooldown for each budget. Every budget needs at least four sizes for a parabola. Source: Hoffmann et al.
    2022, section 3.2, arXiv:2203.15556; a span above 4 biases the minimum (arXiv:2603.22339).

    flops, hours  cost of the whole design, in FLOPs or in hours on this machine at its measured speed; set one of the
                  two
    budgets       number of compute budgets
    ratio         ratio of each budget to the next smaller one
    sizes         model sizes of each budget; fewer are trained where two of them round to the same multiple of head_dim
    span          ratio of the largest size to the optimal size, and of the optimal size to the smallest
    seeds         trunks of each size, one for each seed
    law           law that predicts the optimal sizes: path of a laws.json, or {E, A, B, alpha, beta}; null is
                  `PRIOR`
    head_dim      channels of an attention head; every width is a multiple of it
    """

    def __init__(
        self,
        flops: Quantity | None = None,
        hours: Positive | None = None,
        budgets: Annotated[int, Ge(2), Le(1000)] = 4,
        ratio: Annotated[float, Gt(1)] = 2.0,
        sizes: Annotated[int, Ge(MIN_SIZES), Le(1000)] = 5,
        span: Annotated[float, Gt(1)] = 4.0,
        seeds: Count = 1,
        law: str | Mapping[str, NonNegative] | None = None,
        head_dim: Width = 16,
    ) -> None:
        self.flops, self.hours, self.budgets, self.ratio = flops, hours, budgets, float(ratio)
        self.sizes, self.span, self.seeds, self.head_dim = sizes, float(span), seeds, head_dim
        self.law = planning_law(law)

    def cells(self, context: SweepContext) -> list[Cell]:
        context = replace(context, head_dim=self.head_dim)
        return cells(self.plan(context), context)

    def plan(self, context: SweepContext) -> list[Trunk]:
        """Returns the trunks of the most expensive design with these settings that costs at most `flops` or `hours`."""
        widths = [2 * self.head_dim, 4 * self.head_dim, 8 * self.head_dim]
        allowed = budget_flops(self.flops, self.hours, context, widths, available_cores())
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
        if best_width(self.law, budgets[-1], context, self.head_dim) == (widest := widths_of(self.head_dim)[-1]):
            raise ValueError(
                f"design=isoflop: the best model for the largest budget, {budgets[-1]:.3g} FLOPs, is at least as wide "
                f"as the widest, {widest}, which has {widest // self.head_dim} heads: increase "
                f"design.head_dim={self.head_dim} or decrease design.flops"
            )
        if min(held.values()) < MIN_SIZES:
            raise ValueError(
                f"design=isoflop: one compute budget has only {min(held.values())} model sizes, but fitting its "
                f"parabola needs {MIN_SIZES}: increase design.flops or design.span, or decrease "
                f"design.head_dim={self.head_dim}"
            )
