"""The design `optimal`: the sizes, trunks and branch points that tell most about the loss at a larger compute.

c-optimal for the predicted log loss at the compute-optimal point of `target_flops`, under a covariance with trunk noise
and lack of fit, averaged over laws that are still possible. It is planned again after each third of the budget, from
what has been trained by then. It promises a narrow interval under the assumed law, and refuses to promise accuracy.

What a design has learned so far: from the finished runs of its earlier rounds to the laws that are still possible.

It reads only points that the design itself planned, so a second start sees what the first one saw. It refuses to fit
fewer rows than the law has parameters with some to spare: then the planning laws stand, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kleiber.config.budget import quantity
from kleiber.records.catalog import frame, read_runs
from kleiber.records.summary import read, write_json
from kleiber.studies.designs.plan import Ground, Law, Trunk, budget_flops, cells, planning_laws, points, widths_of
from kleiber.studies.designs.search import Elimination, Noise, Rules, exchange, half_width
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel

PLAN = "design.json"
LARGEST = (1 / 3, 1 / 5, 1 / 8, 1 / 12)  # of the budget, that one trunk may cost; the next when nothing fits
DENSE = 14  # widths and numbers of tokens in the grid of candidates, at most


class Optimal:
    """A design of at most `flops` (or `hours` of this machine, measured), in `rounds` that learn from one another.

    target_flops  compute at whose optimum the loss is to be predicted; null: 10 times the budget
    ratio         bounds of tokens per parameter
    min_tokens    least tokens of a point: below it lies the transient of small models
    points, sizes, replicates  the least of each: points, sizes, and (N, D) cells that two trunks train
    rounds        1 plans once; 3 plans again after each third of the budget
    rho, kappa, ell, s  the assumed noise (`information.Noise`)
    law           laws.json, {E, A, B, alpha, beta}, or null for that of an earlier ladder
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
            raise ValueError(f"design.ratio={list(ratio)}: write the least and the most tokens per parameter")
        if points < 6 or sizes < 3 or rounds < 1 or replicates < 0:
            raise ValueError(
                f"design.points={points}, design.sizes={sizes}, design.rounds={rounds}, design.replicates={replicates}:"
                " at least 6, 3, 1 and 0"
            )
        if not 0 <= rho < 1 or kappa < 0 or ell <= 0 or s <= 0:
            raise ValueError(f"design.rho={rho}, kappa={kappa}, ell={ell}, s={s}: 0 <= rho < 1, kappa >= 0, others > 0")
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
        """Cells of each round; a round is planned when the one before it is done, and written to design.json.

        A second start repeats the recorded rounds, so it continues the same design. A dry run learns nothing on the
        way and plans every round with the given law.
        """
        ground = replace(ground, head_dim=self.head_dim)
        budget = self.budget(ground)
        found = read(ground.folder / PLAN) or {}
        kept = found.get("rounds", []) if found.get("key") == self.key(ground) else []
        done: list[Trunk] = []
        for number in range(self.num_rounds):
            if number < len(kept):
                new = [Trunk(one["width"], one["seed"], tuple(one["branches"])) for one in kept[number]["trunks"]]
            else:
                laws, told = laws_of_runs(done, ground, self.laws)
                new = self.next(ground, budget, done, laws, number)
                kept.append(self._told(ground, new, done, laws[0], budget, told))
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
        """The trunks of one round: the cheap ones of the plan for all that is left, up to this round's share."""
        spent = sum(trunk.cost(ground) for trunk in done)
        planned = sorted(self.plan(ground, budget - spent, done, laws), key=lambda one: one.cost(ground))
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
        """The best use of `left` FLOPs beside the trunks that are `done`. ValueError when it is too little to begin.

        Elimination is greedy: what it leaves is bettered by `exchange`, and where that cannot meet the budget either,
        it begins again without the dearest.
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
        told = f", and the cheapest found costs {min(least):.3g}" if least else ""
        raise ValueError(
            f"design.flops={left:.3g} is too little for {self.rules.points} points of {self.rules.sizes} sizes from "
            f"{self.least:,.0f} tokens{told}: give more, or lower design.points, design.sizes or design.min_tokens"
        )

    def _search(self, ground: Ground, grid: Sequence[Trunk], done: Sequence[Trunk], laws: Sequence[Law]) -> Elimination:
        before = points(done, ground)
        both = before.join(points(grid, ground))
        fixed = np.arange(len(both)) < len(before)
        return Elimination(both, laws, self.target(self.budget(ground)), self.noise, ground.decay, self.rules, fixed)

    def _candidates(self, ground: Ground, largest: float, done: Sequence[Trunk]) -> list[Trunk]:
        """Every width with every number of tokens that the bounds allow at `largest` FLOPs a trunk, twice: the second
        trunk is a replicate.
        """
        used: dict[int, int] = {}
        for trunk in done:
            used[trunk.width] = max(used.get(trunk.width, 0), trunk.seed + 1)
        possible: dict[int, list[int]] = {}
        for width in widths_of(self.head_dim):
            one = ground.size(width)
            most = min(self.ratio[1] * one.active, largest / one.flops_per_token)
            low = max(self.ratio[0] * one.active, self.least)
            if most >= low:
                count = 1 + int(np.log(most / low) / np.log(2**0.5))
                possible[width] = sorted({ground.whole(low * 2 ** (k / 2)) for k in range(min(count, DENSE))})
        chosen = np.unique(np.geomspace(1, max(len(possible), 1), DENSE).round().astype(int)) - 1
        widths = [width for place, width in enumerate(sorted(possible)) if place in chosen]
        return [Trunk(width, used.get(width, 0) + k, tuple(possible[width])) for width in widths for k in range(2)]

    def key(self, ground: Ground) -> str:
        """What a recorded plan must have been made for to be continued."""
        told = [vars(self.noise), vars(self.rules), self.laws[0], self.ratio, self.least, self.num_rounds]
        told += [str(self.flops), str(self.hours), str(self.target_flops), dict(ground.model), ground.batch_tokens]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _told(
        self, ground: Ground, new: Sequence[Trunk], done: Sequence[Trunk], law: Law, budget: float, told: str
    ) -> dict:
        """One entry of design.json."""
        every = points([*done, *new], ground)
        flops = sum(trunk.cost(ground) for trunk in new)
        width = half_width(every, law, self.target(budget), self.noise)
        text = f"{len(new)} trunks, {sum(len(one.branches) for one in new)} points, {flops:.3g} FLOPs; {told}; "
        text += f"expected 90% interval of the loss at {self.target(budget):.3g} FLOPs +-{width:.2%} (assumed law)"
        return {"trunks": [vars(one) for one in new], "flops": flops, "law": dict(law), "told": text}


def _alive(grid: Sequence[Trunk], alive: Sequence[bool]) -> list[Trunk]:
    """The trunks with the branches that are left; `alive` goes over all branches in turn."""
    left = iter(alive)
    kept = [Trunk(one.width, one.seed, tuple(n for n in one.branches if next(left))) for one in grid]
    return [one for one in kept if one.branches]


SPARE = 3  # rows beyond the parameters that a fit must have
DRAWS = 10


def laws_of_runs(done: Sequence[Trunk], ground: Ground, before: Sequence[Law]) -> tuple[Sequence[Law], str]:
    """The fit and bootstrap draws of it, or the planning laws; and which of both in words."""
    if not done:
        return before, "planned with the given law"
    wanted = {
        (ground.size(trunk.width).active, trunk.seed, tokens // ground.batch_tokens)
        for trunk in done
        for tokens in trunk.branches
    }
    runs = read_runs(ground.folder) if ground.folder.is_dir() else []
    rows: Any = frame([run for run in runs if run.status == "finished"])
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
    found = fit(name, inputs, mine["loss"].to_numpy(dtype=float))
    if found.dropped or not np.isfinite(found.noise):
        return before, f"{len(mine)} points do not identify the law yet: planned with the given law"
    _, trunk = np.unique(mine["trunk"].to_numpy(dtype=str), return_inverse=True)
    draws = NoiseModel.of(found, trunk).draws(DRAWS, seed=0)
    rows = found.values if draws is None else np.vstack([found.values, draws.values])
    laws = [_named(list(found.law.params), row) for row in rows]
    usable = [law for law in laws if 0.05 < law["alpha"] < 1.5 and 0.05 < law["beta"] < 1.5 and law["A"] * law["B"] > 0]
    return usable or before, f"planned from {len(mine)} points so far"


def _named(names: Sequence[str], row: np.ndarray) -> Law:
    law = dict(zip(names, row.tolist(), strict=True))
    return {"beta": law["alpha"], **law}
