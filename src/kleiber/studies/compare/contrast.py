"""Claims about forgetting and their tests: each with an estimate, an interval, and holds, does not hold or undecided.

A claim without the runs that test it is left out. Differences are within seeds, whose runs share a base, and their
noise is pooled over all settings. `trends` tests how forgetting F changes from one end of an input to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite

import numpy as np

from kleiber.studies.compare.frontier import Matched, Noise, pooled, within_seeds
from kleiber.studies.compare.rows import PLAIN, Rows, beside, real_replay
from kleiber.types import Json, Row

PAIRED = ["seed", "beside"]  # one base, and fine-tuning of one length
LEARNED = 0.02  # the loss of target quality, relative, that replay is said to stay below


@dataclass(frozen=True)
class Claim:
    """A claim with its estimate and interval [lo, hi], in the unit of the text; `holds` is None where undecided."""

    code: str
    text: str
    value: float
    lo: float
    hi: float
    holds: bool | None

    def verdict(self) -> Json:
        """The verdict of findings.json."""
        outcome = {True: "holds", False: "does not hold", None: "undecided"}[self.holds]
        return {**asdict(self), "level": "note", "text": f"{outcome}: {self.text}"}


def above(code: str, text: str, value: float, half: float, least: float = 0.0) -> Claim:
    """The claim that a quantity with the half-width `half` is larger than `least`."""
    lo, hi = value - half, value + half
    return Claim(code, text, value, lo, hi, True if lo > least else False if hi < least else None)


def claims(rows: Rows, comparisons: Sequence[Matched], level: float) -> list[Claim]:
    """All claims that these runs can test, with intervals at the confidence level `level`."""
    noise = {name: within_seeds(rows, name) for name in ("F", "target")}
    rows = rows.assign(beside=beside(rows))
    return [
        *replay_is_monotone(rows, noise["F"], level),
        *replay_is_cheap(rows, noise["target"], level),
        *fast_forgets(rows, noise["F"], level),
        *averaging(rows, level),
        *against_plain(comparisons),
    ]


def contrast(table: Rows, arm: float | str, other: float | str, noise: Noise, level: float) -> tuple[float, float]:
    """Mean of arm - other over the rows that have both columns, and its half-width; nan without such rows."""
    gaps = (table[arm] - table[other]).dropna()
    return (float(gaps.mean()), noise.half_width(level, 2 / len(gaps))) if len(gaps) else (float("nan"), float("nan"))


def replay_is_monotone(rows: Rows, noise: Noise, level: float) -> list[Claim]:
    """F falls with each step of the replayed share, at each learning rate, for all steps at once (Bonferroni).

    The estimate is that of the weakest step: one that rises beyond noise, else that whose interval ends lowest.
    """
    tables = {lr: part.pivot_table(index=PAIRED, columns="replayed", values="F") for lr, part in by_rate(rows)}
    steps = [(lr, p, q) for lr, table in tables.items() for p, q in pairwise(sorted(table))]
    falls: list[tuple[float, float, str]] = []
    for lr, p, q in steps:
        fall, half = contrast(tables[lr], p, q, noise, 1 - (1 - level) / len(steps))
        if fall == fall:
            falls.append((fall, half, f"{p:g} to {q:g} at learning rate {lr:g}"))
    if not falls:
        return []
    fall, half, where = min(
        [step for step in falls if step[0] + step[1] < 0] or falls, key=lambda step: step[0] - step[1]
    )
    text = f"F falls with every step of the replayed share: the weakest falls by {gap(fall, half)}, from {where}"
    return [above("replay_monotone", text, fall, half)]


def replay_is_cheap(rows: Rows, noise: Noise, level: float) -> list[Claim]:
    """5 % replay costs less than 2 % of the target loss, where plain fine-tuning learns best."""
    tables = {lr: part.pivot_table(index=PAIRED, columns="replayed", values="target") for lr, part in by_rate(rows)}
    pairs_by_rate = {lr: table[[0.0, 0.05]].dropna() for lr, table in tables.items() if {0.0, 0.05} <= set(table)}
    pairs_by_rate = {lr: table for lr, table in pairs_by_rate.items() if len(table)}
    if not pairs_by_rate:
        return []
    table = min(pairs_by_rate.values(), key=lambda table: table[0.0].mean())
    base = float(table[0.0].mean())
    cost, half = (value / base for value in contrast(table, 0.05, 0.0, noise, level))
    ends = f"+- {half:.2%}" if isfinite(half) else "(no interval)"
    text = f"5 % replay costs less than {LEARNED:.0%} of the target loss: {cost:+.2%} {ends} at equal {equal_in(rows)}"
    holds = True if cost + half < LEARNED else False if cost - half > LEARNED else None
    return [Claim("replay_cheap", text, cost, cost - half, cost + half, holds)]


def equal_in(rows: Rows) -> str:
    """What is equal between runs with and without replay: tokens, or new tokens (design.equal=target)."""
    real = real_replay(rows)
    plain, replay = (set(part["tokens"]) for part in (real[real["replayed"] == 0], real[real["replayed"] > 0]))
    return "tokens" if plain & replay else "new tokens"


def by_rate(rows: Rows) -> Rows:
    """Plain fine-tuning and replay of the earlier tasks' own text, by learning rate."""
    return real_replay(rows).groupby("lr")


def fast_forgets(rows: Rows, noise: Noise, level: float) -> list[Claim]:
    """Plain fine-tuning forgets more at its highest learning rate than at its lowest."""
    plain = rows[rows["method"] == PLAIN].pivot_table(index=PAIRED, columns="lr", values="F")
    if len(plain.columns) < 2:
        return []
    low, high = min(plain), max(plain)
    rise, half = contrast(plain, high, low, noise, level)
    if rise != rise:
        return []
    rates = f"{low:g} to {high:g}"
    text = f"a high learning rate forgets more: {gap(rise, half)} from {rates}"
    return [above("fast_forgets", text, rise, half)]


def averaging(rows: Rows, level: float) -> list[Claim]:
    """Averaged weights have a lower loss than the mean of the losses, for forgetting and for the target.

    The gain of a run is the mean loss of start and end less the loss half-way; gains of a seed are averaged.
    """
    line = rows[rows["method"] == "wise"]
    alpha = line["setting"].str.extract(r"a=([0-9.]+)$")[0].astype(float)
    keyed = line.assign(alpha=alpha).pivot_table(index=["seed", "run"], columns="alpha", values=["F", "target"])
    wanted = [("F", 0.0), ("F", 0.5), ("F", 1.0), ("target", 0.0), ("target", 0.5), ("target", 1.0)]
    if not len(line) or not set(wanted) <= set(keyed.columns):
        return []
    results = []
    for name, label in (("F", "forgetting"), ("target", "target loss")):
        gain = ((keyed[name, 0.0] + keyed[name, 1.0]) / 2 - keyed[name, 0.5]).groupby("seed").mean().dropna()
        half = pooled([gain.to_numpy()]).half_width(level, 1 / max(len(gain), 1))
        text = f"half-way between start and end the {label} is below the chord: by {gap(gain.mean(), half)}"
        results.append(above(f"averaging_{name}", text, float(gain.mean()), half))
    return results


def gap(value: float, half: float) -> str:
    """A difference in nats as text, with its interval if there is one."""
    return f"{value:+.4f} +- {half:.4f} nats" if isfinite(half) else f"{value:+.4f} nats (no interval)"


def against_plain(comparisons: Sequence[Matched]) -> list[Claim]:
    """Each method forgets less than plain fine-tuning with a lower learning rate, at the same target loss."""
    results = []
    for comparison in comparisons:
        if comparison.method != PLAIN and comparison.pairs:
            by = gap(comparison.less, comparison.half)
            text = f"{comparison.method} forgets less than plain fine-tuning at equal target loss: by {by}"
            results.append(above(f"matched_{comparison.method}", text, comparison.less, comparison.half))
    return results


BASE = ["N", "M"]  # cells of one size and ratio go on from the same bases, so they are no independent samples
TRENDS = (
    ("grows_with_new_text", "beside", 1.0, "F grows with new text"),
    ("grows_with_pretraining", "M", 1.0, "F grows with pre-training tokens per parameter"),
    ("falls_with_size", "N", -1.0, "F falls with size"),
    ("falls_with_replay", "p", -1.0, "F falls with the replayed share"),
)


def trends(rows: Rows, noise: Noise, level: float) -> list[Claim]:
    """Claims on the change of F from the least to the largest value of each varied input, all at once (Bonferroni).

    rows  the cells of a grid: N, M, p, n (seeds), F (mean over seeds), and `beside`, the steps of the plain cell
    """
    tested = [(*trend, list(pairs(rows, trend[1]))) for trend in TRENDS]
    tested = [trend for trend in tested if trend[-1]]
    each = 1 - (1 - level) / (1 + len(tested))  # the growth with new text is asked twice
    results = []
    for code, column, sign, text, ends in tested:
        rises = [sign * (high["F"] - low["F"]) for low, high in ends]
        results.append(claim(code, text, column, rises, ends, noise.half_width(each, terms(ends))))
        if column == "beside":
            longer = ends[0][1][column] / ends[0][0][column]
            slower = [longer * low["F"] - high["F"] for low, high in ends]
            half = noise.half_width(each, terms(ends) * (1 + longer**2) / 2)
            results.append(claim("power_below_1", "F grows more slowly than new text does", column, slower, ends, half))
    return results


def pairs(rows: Rows, column: str) -> Iterator[tuple[Row, Row]]:
    """Pairs of cells at the least and at the largest value of an input that are equal in all other inputs."""
    kept = rows if column == "p" else rows[rows["p"] == 0]
    low, high = kept[column].min(), kept[column].max()
    others = [name for name in ("N", "M", "beside", "p") if name != column]
    for _, part in kept.groupby(others):
        ends = [part[part[column] == value] for value in (low, high)]
        if low < high and all(map(len, ends)):
            yield ends[0].iloc[0], ends[1].iloc[0]


def terms(ends: list[tuple[Row, Row]]) -> float:
    """Variance of the mean difference in units of that of a run, with as many independent differences as bases."""
    bases = min(len({tuple(cell[BASE]) for cell in side}) for side in zip(*ends, strict=True))
    return float(np.mean([1 / low["n"] + 1 / high["n"] for low, high in ends])) / bases


def claim(code: str, text: str, column: str, values: list[float], ends: list[tuple[Row, Row]], half: float) -> Claim:
    """The claim that the mean of `values` is positive, with their range over the cells in its text."""
    low, high = ends[0][0][column], ends[0][1][column]
    span = f"{min(values):+.4f} to {max(values):+.4f} over {len(values)} cells"
    unit = {"beside": " steps", "M": " tokens per parameter", "N": " parameters", "p": " of the tokens"}[column]
    mean = float(np.mean(values))
    return above(code, f"{text}: by {gap(mean, half)} from {low:g} to {high:g}{unit}, {span}", mean, half)
