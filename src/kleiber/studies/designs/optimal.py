"""The design `optimal`: the sizes, trunks and branches that predict the loss at a larger compute most precisely.

c-optimal for the log loss at the compute-optimal point of `target_flops`, under a covariance with trunk noise and lack
of fit, averaged over plausible laws. Each round is planned from a fit to the points of the rounds before it; where
these are too few for a fit, the planning laws are used. The expected interval holds under the assumed law only.
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
from kleiber.studies.designs.plan import Ground, Law, Trunk, budget_flops, cells, planning_laws, points, widths_of
from kleiber.studies.designs.search import Elimination, Noise, Rules, exchange, half_width
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel

PLAN = "design.json"
LARGEST = (1 / 3, 1 / 5, 1 / 8, 1 / 12)  # of the budget, that one trunk may cost; the next when nothing fits
DENSE = 14  # widths and numbers of tokens in the grid of candidates, at most


class Optimal:
    """A design of at most `flops`, or `hours` of this machine at its measured speed, planned in several rounds.

    target_flops  compute at whose optimum the loss is to be predicted; null: 10 times the budget
    ratio         least and most tokens per parameter
    min_tokens    least tokens of a point; shorter training is still in the transient of small models
    points, sizes, replicates  least number of points, of sizes, and of (N, D) cells that two trunks train
    rounds        1 plans once; 3 plans again after each third of the budget
    rho, kappa, ell, s  the assumed noise (`search.Noise`)
    law           path of a laws.json, or {E, A, B, alpha, beta}; null plans with the law `plan.PRIOR`
    head_dim      channels of a head; widths are its multiples
    """

    def __init__(
        self, flops: float | int | str | None = None, hours: float | int | None = None,
        target_flops: float | int | str | None = None, ratio: Sequence[float | int] = (2.0, 300.0),
        min_tokens: float | int | str = "1M", points: int = 12, sizes: int = 6, replicates: int = 2, rounds: int = 3,
        rho: float | int = 0.5, kappa: float | int = 4.0, ell: float | int = 1.5, s: float | int = 0.005,
        law: str | Mapping[str, float] | None = None, head_dim: int = 16,
    ) -> None:  # fmt: skip
        if len(ratio) != 2 or not 0 < ratio[0] < ratio[1]:
            raise ValueError(f"design.ratio={list(ratio)} must be [least, most] tokens per parameter, both positive")
        if points < 6 or sizes < 3 or rounds < 1 or replicates < 0:
            raise ValueError(
                f"design.points={points}, design.sizes={sizes}, design.rounds={rounds}, design.replicates={replicates}:"
                " must be >= 6, 3, 1 and 0"
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

    def budget(self, ground: Ground) -> float:
        widths = [2 * self.head_dim, 4 * self.head_dim, 8 * self.head_dim]
        return budget_flops(self.flops, self.hours, ground, widths, os.cpu_count() or 1)

    def target(self, budget: float) -> float:
        return 10 * budget if self.target_flops is None else quantity(self.target_flops)

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        """The cells of each round; a round is planned after the one before it has run, and is recorded in design.json.

        A second start repeats the recorded rounds, so it continues the same design. A dry run plans every round with
        the planning laws.
        """
        ground = replace(ground, head_dim=self.head_dim)
        budget = self.budget(ground)
        record = read(ground.folder / PLAN) or {}
        kept = record.get("rounds", []) if record.get("key") == self.key(ground) else []
        done: list[Trunk] = []
        for number in range(self.num_rounds):
            if number < len(kept):
                new = [
                    Trunk(trunk["width"], trunk["seed"], tuple(trunk["branches"])) for trunk in kept[number]["trunks"]
                ]
            else:
                laws, reason = laws_of_runs(done, ground, self.laws)
                new = self.next(ground, budget, done, laws, number)
                kept.append(self._told(ground, new, done, laws[0], budget, reason))
                if ground.planned is None:
                    ground.folder.mkdir(parents=True, exist_ok=True)
                    write_json(ground.folder / PLAN, {"key": self.key(ground), "rounds": kept})
            print(f"design, round {number + 1} of {self.num_rounds}: {kept[number]['told']}", flush=True)
            done += new
            if new:
                yield cells(new, ground)

    def next(
        self, ground: Ground, budget: float, done: Sequence[Trunk], laws: Sequence[Law], number: int
    ) -> list[Trunk]:
        """The trunks of one round: the cheapest of a plan for the rest of the budget, up to the share of this round."""
        spent = sum(trunk.cost(ground) for trunk in done)
        planned = sorted(self.plan(ground, budget - spent, done, laws), key=lambda trunk: trunk.cost(ground))
        if number == self.num_rounds - 1:
            return planned
        taken: list[Trunk] = []
        for trunk in planned:
            spent += trunk.cost(ground)
            if taken and spent > budget * (number + 1) / self.num_rounds:
                break
            taken.append(trunk)
        return taken

    def plan(self, ground: Ground, left: float, done: Sequence[Trunk], laws: Sequence[Law]) -> list[Trunk]:
        """The best trunks for `left` FLOPs in addition to those that are `done`.

        Elimination is followed by `exchange`; where both exceed the budget, they start again without the most expensive
        candidates. Raises ValueError where `left` is too small for a first round.
        """
        least: list[float] = []
        for largest in LARGEST:
            grid = self._candidates(ground, left * largest, done)
            search = self._search(ground, grid, done, laws) if grid else None
            while search and search.cost > left and search.step():
                pass
            if search:
                least.append(search.cost)
                alive, variance = exchange(
                    search.points, laws, self.target(self.budget(ground)), self.noise, ground.decay, self.rules,
                    search.alive, search.fixed, left,
                )  # fmt: skip
                if variance < np.inf:
                    return _alive(grid, alive[~search.fixed].tolist())
        if done:
            return []
        cheapest = f"; the cheapest design costs {min(least):.3g} FLOPs" if least else ""
        raise ValueError(
            f"design.flops={left:.3g} is too little for {self.rules.points} points of {self.rules.sizes} sizes from "
            f"{self.least:,.0f} tokens{cheapest}: increase it, or decrease design.points, design.sizes or "
            "design.min_tokens"
        )

    def _search(self, ground: Ground, grid: Sequence[Trunk], done: Sequence[Trunk], laws: Sequence[Law]) -> Elimination:
        before = points(done, ground)
        joined = before.join(points(grid, ground))
        fixed = np.arange(len(joined)) < len(before)
        return Elimination(joined, laws, self.target(self.budget(ground)), self.noise, ground.decay, self.rules, fixed)

    def _candidates(self, ground: Ground, largest: float, done: Sequence[Trunk]) -> list[Trunk]:
        """Every width with every number of tokens that the bounds allow at `largest` FLOPs a trunk, twice: the second
        trunk is a replicate.
        """
        used: dict[int, int] = {}
        for trunk in done:
            used[trunk.width] = max(used.get(trunk.width, 0), trunk.seed + 1)
        possible: dict[int, list[int]] = {}
        for width in widths_of(self.head_dim):
            size = ground.size(width)
            most = min(self.ratio[1] * size.active, largest / size.flops_per_token)
            low = max(self.ratio[0] * size.active, self.least)
            if most >= low:
                count = 1 + int(np.log(most / low) / np.log(2**0.5))
                possible[width] = sorted({ground.whole(low * 2 ** (k / 2)) for k in range(min(count, DENSE))})
        chosen = np.unique(np.geomspace(1, max(len(possible), 1), DENSE).round().astype(int)) - 1
        widths = [width for place, width in enumerate(sorted(possible)) if place in chosen]
        return [Trunk(width, used.get(width, 0) + k, tuple(possible[width])) for width in widths for k in range(2)]

    def key(self, ground: Ground) -> str:
        """A hash of all that a plan depends on; only a recorded plan with the same key is continued."""
        parts = [vars(self.noise), vars(self.rules), self.laws[0], self.ratio, self.least, self.num_rounds]
        parts += [str(self.flops), str(self.hours), str(self.target_flops), dict(ground.model), ground.batch_tokens]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _told(
        self, ground: Ground, new: Sequence[Trunk], done: Sequence[Trunk], law: Law, budget: float, reason: str
    ) -> dict:
        """The entry of a round in design.json."""
        every = points([*done, *new], ground)
        flops = sum(trunk.cost(ground) for trunk in new)
        width = half_width(every, law, self.target(budget), self.noise)
        text = f"{len(new)} trunks, {sum(len(trunk.branches) for trunk in new)} points, {flops:.3g} FLOPs; {reason}; "
        text += f"expected 90% interval of the loss at {self.target(budget):.3g} FLOPs +-{width:.2%} (assumed law)"
        return {"trunks": [vars(trunk) for trunk in new], "flops": flops, "law": dict(law), "told": text}


def _alive(grid: Sequence[Trunk], alive: Sequence[bool]) -> list[Trunk]:
    """The trunks with the branches that remain; `alive` has a value for every branch, in order."""
    left = iter(alive)
    kept = [Trunk(trunk.width, trunk.seed, tuple(n for n in trunk.branches if next(left))) for trunk in grid]
    return [trunk for trunk in kept if trunk.branches]


SPARE = 3  # least number of rows of a fit beyond its parameters
DRAWS = 10


def laws_of_runs(done: Sequence[Trunk], ground: Ground, before: Sequence[Law]) -> tuple[Sequence[Law], str]:
    """The fitted law and bootstrap draws of it, or the planning laws `before`; and a sentence that says which.

    Reads only runs of points that the design planned itself, so a second start plans from the same rows.
    """
    if not done:
        return before, "planned with the given law"
    wanted = {
        (ground.size(trunk.width).active, trunk.seed, tokens // ground.batch_tokens)
        for trunk in done
        for tokens in trunk.branches
    }
    runs = read_runs(ground.folder) if ground.folder.is_dir() else []
    rows: Rows = frame([run for run in runs if run.status == "finished"])
    rows = rows.dropna(subset=["loss", "tokens", "active"]) if len(rows) else rows
    if not len(rows):
        return before, "no run of the earlier rounds has finished: planned with the given law"
    keys = zip(rows["active"], rows["seed"], (rows["tokens"] // ground.batch_tokens).astype(int), strict=True)
    mine = rows[[key in wanted for key in keys]]
    mine = mine.sort_values(["active", "seed", "tokens"])
    if len(mine) > len(wanted):
        return before, "several runs at one point (the command line sweeps too): planned with the given law"
    name = "chinchilla" if len(mine) >= 5 + SPARE else "chinchilla_tied"
    if len(mine) < 4 + SPARE or mine["active"].nunique() < 3 or mine["tokens"].nunique() < 3:
        return before, f"{len(mine)} points so far are too few to fit: planned with the given law"
    inputs = {"N": mine["active"].to_numpy(dtype=float), "D": mine["tokens"].to_numpy(dtype=float)}
    fitted = fit(name, inputs, mine["loss"].to_numpy(dtype=float))
    if fitted.dropped or not np.isfinite(fitted.noise):
        return before, f"{len(mine)} points do not identify the law yet: planned with the given law"
    _, trunk = np.unique(mine["trunk"].to_numpy(dtype=str), return_inverse=True)
    draws = NoiseModel.of(fitted, trunk).draws(DRAWS, seed=0)
    rows = fitted.values if draws is None else np.vstack([fitted.values, draws.values])
    laws = [_named(list(fitted.law.params), row) for row in rows]
    usable = [law for law in laws if 0.05 < law["alpha"] < 1.5 and 0.05 < law["beta"] < 1.5 and law["A"] * law["B"] > 0]
    return usable or before, f"planned from {len(mine)} points so far"


def _named(names: Sequence[str], row: np.ndarray) -> Law:
    law = dict(zip(names, row.tolist(), strict=True))
    return {"beta": law["alpha"], **law}
