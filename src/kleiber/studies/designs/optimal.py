"""The design `optimal`: chooses the runs whose fitted law predicts the loss at a larger compute most precisely.

The design is c-optimal for the log loss at the compute-optimal point of `target_flops`. The assumed covariance has
noise that the branches of a trunk share and a lack of fit, and the variance is averaged over several plausible laws.
Each round is planned with a law fitted to the runs of the previous rounds, or with the prior laws while there are too
few runs for a fit. The expected interval that it prints holds only if the assumed law and covariance are right.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from kleiber.config.stages import quantity
from kleiber.records.catalog import frame, read_runs
from kleiber.records.summary import read, write_json
from kleiber.studies.compare.rows import Rows
from kleiber.studies.designs.plan import Law, SweepContext, Trunk, budget_flops, cells, planning_laws, widths_of
from kleiber.studies.designs.search import Elimination, Noise, Points, Rules, exchange, half_width
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel

PLAN = "design.json"
TRUNK_SHARES = (1 / 3, 1 / 5, 1 / 8, 1 / 12)  # parts of the budget that one trunk may cost, tried in this order
GRID_STEPS = 14  # most widths, and most token counts of a width, in the grid of candidates


class Optimal:
    """Chooses widths, trunks and branches that cost at most `flops`, or `hours` on this machine at its measured speed.

    target_flops  compute budget at whose optimum the loss is to be predicted; null is 10 times the cost of the design
    ratio         [least, most] tokens per parameter
    min_tokens    fewest training tokens of a point; after fewer, small models have not reached the regime of the law
    points, sizes, replicates  fewest (N, D) points, model sizes, and (N, D) points that are trained with two seeds
    rounds        number of rounds; with 3, the rest is planned anew after each third of the budget
    rho, kappa, ell, s  the assumed covariance, see `search.Noise`
    law           prior law: path of a laws.json, or {E, A, B, alpha, beta}; null is `plan.PRIOR`
    head_dim      channels of an attention head; every width is a multiple of it
    """

    def __init__(
        self, flops: float | int | str | None = None, hours: float | int | None = None,
        target_flops: float | int | str | None = None, ratio: Sequence[float | int] = (2.0, 300.0),
        min_tokens: float | int | str = "1M", points: int = 12, sizes: int = 6, replicates: int = 2, rounds: int = 3,
        rho: float | int = 0.5, kappa: float | int = 4.0, ell: float | int = 1.5, s: float | int = 0.005,
        law: str | Mapping[str, float] | None = None, head_dim: int = 16,
    ) -> None:  # fmt: skip
        if len(ratio) != 2 or not 0 < ratio[0] < ratio[1]:
            raise ValueError(f"design.ratio={list(ratio)} must be [least, most] tokens per parameter, 0 < least < most")
        if points < 6 or sizes < 3 or rounds < 1 or replicates < 0:
            raise ValueError(
                f"design.points={points} must be >= 6, design.sizes={sizes} must be >= 3, design.rounds={rounds} must "
                f"be >= 1, and design.replicates={replicates} must be >= 0"
            )
        if not 0 <= rho < 1 or kappa < 0 or ell <= 0 or s <= 0:
            raise ValueError(
                f"design.rho={rho} must be >= 0 and < 1, design.kappa={kappa} must be >= 0, design.ell={ell} and "
                f"design.s={s} must be > 0"
            )
        self.flops, self.hours, self.target_flops = flops, hours, target_flops
        self.ratio, self.least, self.num_rounds = (float(ratio[0]), float(ratio[1])), quantity(min_tokens), rounds
        self.rules = Rules(points, sizes, replicates)
        self.noise = Noise(float(s), float(rho), float(kappa), float(ell))
        self.laws, self.head_dim = planning_laws(law), head_dim

    def budget(self, context: SweepContext) -> float:
        widths = [2 * self.head_dim, 4 * self.head_dim, 8 * self.head_dim]
        return budget_flops(self.flops, self.hours, context, widths, os.cpu_count() or 1)

    def target(self, budget: float) -> float:
        return 10 * budget if self.target_flops is None else quantity(self.target_flops)

    def rounds(self, context: SweepContext) -> Iterator[list[list[str]]]:
        """Yields the cells of each round, planned when the previous one has run, and records them in design.json.

        A restarted sweep reads the recorded rounds from design.json, and so continues the same design. A dry run plans
        every round with the prior laws.
        """
        context = replace(context, head_dim=self.head_dim)
        budget = self.budget(context)
        record = read(context.folder / PLAN) or {}
        kept = record.get("rounds", []) if record.get("key") == self.key(context) else []
        done: list[Trunk] = []
        for number in range(self.num_rounds):
            if number < len(kept):
                new = [
                    Trunk(trunk["width"], trunk["seed"], tuple(trunk["branches"])) for trunk in kept[number]["trunks"]
                ]
            else:
                laws, reason = refit_laws(done, context, self.laws)
                new = self.next_round(context, budget, done, laws, number)
                kept.append(self._round_record(context, new, done, laws[0], budget, reason))
                if context.planned is None:
                    context.folder.mkdir(parents=True, exist_ok=True)
                    write_json(context.folder / PLAN, {"key": self.key(context), "rounds": kept})
            print(f"design=optimal, round {number + 1} of {self.num_rounds}: {kept[number]['told']}", flush=True)
            done += new
            if new:
                yield cells(new, context)

    def next_round(
        self, context: SweepContext, budget: float, done: Sequence[Trunk], laws: Sequence[Law], number: int
    ) -> list[Trunk]:
        """Returns the trunks of round `number`: the cheapest ones of a plan for all of the remaining budget.

        It stops at the round's part of the budget; the last round takes all.
        """
        spent = sum(trunk.cost(context) for trunk in done)
        planned = sorted(self.plan(context, budget - spent, done, laws), key=lambda trunk: trunk.cost(context))
        if number == self.num_rounds - 1:
            return planned
        taken: list[Trunk] = []
        for trunk in planned:
            spent += trunk.cost(context)
            if taken and spent > budget * (number + 1) / self.num_rounds:
                break
            taken.append(trunk)
        return taken

    def plan(self, context: SweepContext, left: float, done: Sequence[Trunk], laws: Sequence[Law]) -> list[Trunk]:
        """Returns the best trunks to add to those that are `done`, for at most `left` FLOPs.

        `Elimination` thins out a grid of candidates, then `exchange` improves the rest. Where both end above `left`,
        they start again from a grid of cheaper trunks. Raises ValueError if `left` is too small for a first round.
        """
        least: list[float] = []
        for largest in TRUNK_SHARES:
            grid = self._candidates(context, left * largest, done)
            search = self._search(context, grid, done, laws) if grid else None
            while search and search.cost > left and search.step():
                pass
            if search:
                least.append(search.cost)
                alive, variance = exchange(
                    search.points, laws, self.target(self.budget(context)), self.noise, context.decay, self.rules,
                    search.alive, search.fixed, left,
                )  # fmt: skip
                if variance < np.inf:
                    return _remaining_trunks(grid, alive[~search.fixed].tolist())
        if done:
            return []
        cheapest = f"; the cheapest design costs {min(least):.3g} FLOPs" if least else ""
        raise ValueError(
            f"design.flops={left:.3g} is too little to train {self.rules.points} points of {self.rules.sizes} sizes, "
            f"each for at least {self.least:,.0f} tokens{cheapest}: increase design.flops (or design.hours), or "
            "decrease design.points, design.sizes or design.min_tokens"
        )

    def _search(
        self, context: SweepContext, grid: Sequence[Trunk], done: Sequence[Trunk], laws: Sequence[Law]
    ) -> Elimination:
        before = points(done, context)
        joined = before.join(points(grid, context))
        fixed = np.arange(len(joined)) < len(before)
        return Elimination(
            joined, laws, self.target(self.budget(context)), self.noise, context.decay, self.rules, fixed
        )

    def _candidates(self, context: SweepContext, largest: float, done: Sequence[Trunk]) -> list[Trunk]:
        """Returns a grid of candidate trunks: every width with all allowed token counts, with two new seeds.

        largest  FLOPs that the longest branch of a trunk may cost
        """
        used: dict[int, int] = {}
        for trunk in done:
            used[trunk.width] = max(used.get(trunk.width, 0), trunk.seed + 1)
        possible: dict[int, list[int]] = {}
        for width in widths_of(self.head_dim):
            size = context.size(width)
            most = min(self.ratio[1] * size.active, largest / size.flops_per_token)
            low = max(self.ratio[0] * size.active, self.least)
            if most >= low:
                count = 1 + int(np.log(most / low) / np.log(2**0.5))
                possible[width] = sorted(
                    {context.round_to_batches(low * 2 ** (k / 2)) for k in range(min(count, GRID_STEPS))}
                )
        chosen = np.unique(np.geomspace(1, max(len(possible), 1), GRID_STEPS).round().astype(int)) - 1
        widths = [width for place, width in enumerate(sorted(possible)) if place in chosen]
        return [Trunk(width, used.get(width, 0) + k, tuple(possible[width])) for width in widths for k in range(2)]

    def key(self, context: SweepContext) -> str:
        """Returns a hash of everything that a plan depends on: the design's settings, the model and the batch size.

        The rounds in design.json are reused only if the hash recorded with them equals this one.
        """
        parts = [vars(self.noise), vars(self.rules), self.laws[0], self.ratio, self.least, self.num_rounds]
        parts += [str(self.flops), str(self.hours), str(self.target_flops), dict(context.model), context.batch_tokens]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _round_record(
        self, context: SweepContext, new: Sequence[Trunk], done: Sequence[Trunk], law: Law, budget: float, reason: str
    ) -> dict:
        """Returns the entry of a round for design.json."""
        every = points([*done, *new], context)
        flops = sum(trunk.cost(context) for trunk in new)
        width = half_width(every, law, self.target(budget), self.noise)
        text = f"{len(new)} trunks with {sum(len(trunk.branches) for trunk in new)} points cost {flops:.3g} FLOPs; "
        text += (
            f"{reason}; the predicted loss at {self.target(budget):.3g} FLOPs is expected to have a 90% interval of "
        )
        text += f"+-{width:.2%} if the assumed law is right"
        return {"trunks": [vars(trunk) for trunk in new], "flops": flops, "law": dict(law), "told": text}


def _remaining_trunks(grid: Sequence[Trunk], alive: Sequence[bool]) -> list[Trunk]:
    """Returns the trunks with the branches whose value in `alive` is true; `alive` is in the order of `grid`."""
    left = iter(alive)
    kept = [Trunk(trunk.width, trunk.seed, tuple(n for n in trunk.branches if next(left))) for trunk in grid]
    return [trunk for trunk in kept if trunk.branches]


EXTRA_ROWS = 3  # a fit needs this many rows more than it has parameters
DRAWS = 10


def refit_laws(done: Sequence[Trunk], context: SweepContext, before: Sequence[Law]) -> tuple[Sequence[Law], str]:
    """Returns the laws to plan the next round with, and a sentence that says which they are.

    They are the law fitted to the finished runs and bootstrap draws of it, or `before` where these runs are too few.
    Only runs of the trunks `done` are read, so a restarted sweep plans from the same rows.
    """
    if not done:
        return before, "planned with the prior law"
    wanted = {
        (context.size(trunk.width).active, trunk.seed, tokens // context.batch_tokens)
        for trunk in done
        for tokens in trunk.branches
    }
    runs = read_runs(context.folder) if context.folder.is_dir() else []
    rows: Rows = frame([run for run in runs if run.status == "finished"])
    rows = rows.dropna(subset=["loss", "tokens", "active"]) if len(rows) else rows
    if not len(rows):
        return before, "planned with the prior law, since no run of the previous rounds has finished"
    keys = zip(rows["active"], rows["seed"], (rows["tokens"] // context.batch_tokens).astype(int), strict=True)
    mine = rows[[key in wanted for key in keys]]
    mine = mine.sort_values(["active", "seed", "tokens"])
    if len(mine) > len(wanted):
        return before, "planned with the prior law, since a sweep on the command line trains several runs at one point"
    name = "chinchilla" if len(mine) >= 5 + EXTRA_ROWS else "chinchilla_tied"
    if len(mine) < 4 + EXTRA_ROWS or mine["active"].nunique() < 3 or mine["tokens"].nunique() < 3:
        return before, f"planned with the prior law, since {len(mine)} finished points are too few for a fit"
    inputs = {"N": mine["active"].to_numpy(dtype=float), "D": mine["tokens"].to_numpy(dtype=float)}
    fitted = fit(name, inputs, mine["loss"].to_numpy(dtype=float))
    if fitted.dropped or not np.isfinite(fitted.noise):
        return before, f"planned with the prior law, since {len(mine)} finished points do not identify its parameters"
    _, trunk = np.unique(mine["trunk"].to_numpy(dtype=str), return_inverse=True)
    draws = NoiseModel.of(fitted, trunk).draws(DRAWS, seed=0)
    rows = fitted.values if draws is None else np.vstack([fitted.values, draws.values])
    laws = [_named(list(fitted.law.params), row) for row in rows]
    usable = [law for law in laws if 0.05 < law["alpha"] < 1.5 and 0.05 < law["beta"] < 1.5 and law["A"] * law["B"] > 0]
    return usable or before, f"planned with the law fitted to {len(mine)} finished points"


def _named(names: Sequence[str], row: np.ndarray) -> Law:
    law = dict(zip(names, row.tolist(), strict=True))
    return {"beta": law["alpha"], **law}


def points(plan: Sequence[Trunk], context: SweepContext) -> Points:
    """Returns the (N, D) points of a plan; without branches, every point is a trunk by itself."""
    rows, number = [], 0
    for trunk in plan:
        size = context.size(trunk.width)
        for tokens in trunk.branches:
            rows.append((size.active, tokens, number, size.flops_per_token))
            number += not context.branched
        number += context.branched
    N, D, trunks, flops = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Points(N, D, trunks.astype(np.int64), flops)
