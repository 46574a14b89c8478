"""The study `moe_gain`: the gain of a mixture of experts over a dense model of equal active FLOPs, by size and tokens.

All cells of the design `arms` have one learning rate, which muP transfers from the width at which `sparsity` tunes it.
Gains are paired by seed, at equal tokens and at equal training time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import (
    Arm,
    format_gap,
    interval,
    paired,
    points,
    read,
)
from kleiber.studies.compare.frontier import loss_after, spent
from kleiber.studies.study import Figures, Findings, Study
from kleiber.types import Json, Row

Ladder = dict[float, Arm]  # one arm, by training tokens


@dataclass(frozen=True)
class MoEGain(Study):
    """Which arms are a pair.

    arm    of a cell: set by the design
    pairs  {mixture: ARM, dense: ARM}, from the smallest size to the largest
    """

    arm: str | None = None
    pairs: Sequence[Mapping[str, str]] = ()

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if set(pair) != {"mixture", "dense"}:
                raise ValueError(f"study.pairs: {pair}: give mixture and dense, the names of two arms")

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the gain of each mixture over its dense model, and its trend in tokens and size."""
        ladders = by_tokens(runs)
        rows, trends, verdicts = [], [], []
        for pair in self.pairs:
            if missing := [name for name in pair.values() if name not in ladders]:
                text = f"no finished run of {' and '.join(missing)}"
                verdicts.append({"code": "missing", "level": "warn", "text": text})
                continue
            rows += gains(ladders[pair["mixture"]], ladders[pair["dense"]])
            trends.append(with_tokens(ladders[pair["mixture"]], ladders[pair["dense"]]))
        present = [pair for pair in self.pairs if all(name in ladders for name in pair.values())]
        trends += [with_size(ladders, *two) for two in pairwise(present)]
        trends = [row for row in trends if row is not None]
        verdicts += [verdict(row) for row in trends]
        shown = {"Gain": rows, "Trends": trends}
        return Findings(headline(rows), verdicts, shown, figures(rows), methods=METHODS)


METHODS = (
    "Every cell has one learning rate, which muP carries over widths. Differences are mixture less dense, paired by "
    "seed (cells of a seed see the same samples in the same order), with Student's 90 % interval. At equal training "
    "time the dense loss is interpolated in the logarithm of its training time between its budgets. A trend is the "
    "slope of the difference for each doubling of the tokens, or the difference of the differences of two sizes, seed "
    "by seed."
)


def by_tokens(runs: Sequence[Run]) -> dict[str, Ladder]:
    """Every arm at every number of tokens that it was trained for."""
    ladders: dict[str, Ladder] = {}
    lengths = sorted({float(row["tokens"]) for row in points(runs) if row["loss"] is not None})
    for tokens in lengths:
        for name, arm in read(runs, tokens).items():
            ladders.setdefault(name, {})[tokens] = arm
    return ladders


def gains(mixture: Ladder, dense: Ladder) -> list[Json]:
    """A row for each number of tokens that both have: the difference at equal tokens, and at equal training time."""
    rows = []
    for tokens in sorted(set(mixture) & set(dense)):
        ours, theirs = mixture[tokens], dense[tokens]
        row = {"what": f"{ours.name} - {theirs.name}", "active": theirs.facts["active"], "tokens": tokens}
        row |= paired(ours.at_best, theirs.at_best)
        row["time"] = spent(ours) / spent(theirs)
        level = loss_after(spent(ours), list(dense.values()))
        clock = {} if level is None else paired(ours.at_best, level)
        row |= {f"{key} at equal time": clock.get(key) for key in ("value", "lo", "hi")}
        rows.append(row)
    return rows


def differences(mixture: Ladder, dense: Ladder) -> dict[int, dict[float, float]]:
    """Mixture less dense by seed and tokens, of the seeds that have every number of tokens."""
    shared = sorted(set(mixture) & set(dense))
    seeds = set.intersection(*({*mixture[at].at_best} & {*dense[at].at_best} for at in shared)) if shared else set()
    return {seed: {at: mixture[at].at_best[seed] - dense[at].at_best[seed] for at in shared} for seed in sorted(seeds)}


def with_tokens(mixture: Ladder, dense: Ladder) -> Json | None:
    """How the difference moves with each doubling of the tokens."""
    slopes = []
    for by_length in differences(mixture, dense).values():
        xs = [math.log2(tokens) for tokens in by_length]
        if len(xs) > 1:
            mean = sum(xs) / len(xs)
            slope = sum((x - mean) * gap for x, gap in zip(xs, by_length.values(), strict=True))
            slopes.append(slope / sum((x - mean) ** 2 for x in xs))
    name = next(iter(mixture.values())).name
    return trend(f"{name}: for each doubling of the tokens", slopes)


def with_size(ladders: Mapping[str, Ladder], small: Mapping[str, str], large: Mapping[str, str]) -> Json | None:
    """How the difference moves from one size to the next, over the tokens that both sizes have."""
    smaller, larger = (differences(ladders[pair["mixture"]], ladders[pair["dense"]]) for pair in (small, large))
    moved = []
    for seed in sorted(set(smaller) & set(larger)):
        shared = set(smaller[seed]) & set(larger[seed])
        if shared:
            moved.append(sum(larger[seed][at] - smaller[seed][at] for at in shared) / len(shared))
    return trend(f"from {small['mixture']} to {large['mixture']}", moved)


def trend(label: str, values: Sequence[float]) -> Json | None:
    if not values:
        return None
    low, high = interval(values)
    return {"what": label, "value": sum(values) / len(values), "lo": low, "hi": high, "seeds": len(values)}


def verdict(row: Row) -> dict[str, str]:
    if row["lo"] is None or row["lo"] <= 0 <= row["hi"]:
        return {"code": "trend", "level": "warn", "text": f"{row['what']}: not told from none ({format_gap(row)})"}
    way = "grows" if row["value"] < 0 else "shrinks"
    return {"code": "trend", "level": "note", "text": f"{row['what']}: the gain {way} ({format_gap(row)})"}


def headline(rows: Sequence[Row]) -> str:
    """On how many pairs of runs the mixture is better, and by how much at the most tokens."""
    if not rows:
        return "No mixture and dense model have a number of tokens in common."
    better, all_pairs = (sum(row[key] for row in rows) for key in ("better on", "seeds"))
    last = max(rows, key=lambda row: row["tokens"])
    text = f"The mixture is better in {better} of {all_pairs} pairs of equal active FLOPs, tokens and seed; "
    return f"{text}{last['what']} at {last['tokens'] / 1e6:.0f}M tokens: {format_gap(last)}."


def figures(rows: Sequence[Row]) -> Figures:
    """The figure of the gain over training tokens; none without rows."""

    def gain() -> object:
        from kleiber.studies.compare.figures import over_tokens

        return over_tokens(rows)

    return {"gain": gain} if rows else {}
