"""What is often said of forgetting, each asked of the runs at hand: an estimate, an interval, and yes, no or undecided.

A claim whose runs are not there is not made. Differences are taken within seeds, whose runs share a base; their noise
is pooled over all settings.

What is said of forgetting's growth, asked of a grid without a law: how F changes from end to end of one input.

A law may not be identified where its trends are plain, and may be where one of them turns with another input: so each
is told with its range over the cells beside its mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np

from kleiber.studies.compare.frontier import Matched, Noise, pooled, within_seeds
from kleiber.studies.compare.rows import PLAIN, beside, real_replay

PAIRED = ["seed", "beside"]  # one base, and fine-tuning of one length
LEARNED = 0.02  # the loss of target quality, relative, that replay is said to stay below


@dataclass(frozen=True)
class Claim:
    """`holds` is None where the interval leaves it open. `value` and its interval are in the text's unit."""

    code: str
    text: str
    value: float
    lo: float
    hi: float
    holds: bool | None

    def verdict(self) -> dict[str, Any]:
        """As findings.json and the page hold it."""
        told = {True: "holds", False: "does not hold", None: "undecided"}[self.holds]
        return {**asdict(self), "level": "note", "text": f"{told}: {self.text}"}


def above(code: str, text: str, value: float, half: float, least: float = 0.0) -> Claim:
    """The claim that a quantity is more than `least`."""
    lo, hi = value - half, value + half
    return Claim(code, text, value, lo, hi, True if lo > least else False if hi < least else None)


def claims(rows: Any, found: Sequence[Matched], level: float) -> list[Claim]:
    noise = {name: within_seeds(rows, name) for name in ("F", "target")}
    rows = rows.assign(beside=beside(rows))
    return [
        *replay_is_monotone(rows, noise["F"], level),
        *replay_is_cheap(rows, noise["target"], level),
        *fast_forgets(rows, noise["F"], level),
        *averaging(rows, level),
        *against_plain(found),
    ]


def contrast(table: Any, one: Any, other: Any, noise: Noise, level: float) -> tuple[float, float]:
    """Mean of one - other where both are, columns of a table by PAIRED, and its half-width; nan without any."""
    gaps = (table[one] - table[other]).dropna()
    return (float(gaps.mean()), noise.half_width(level, 2 / len(gaps))) if len(gaps) else (float("nan"), float("nan"))


def replay_is_monotone(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """F falls from each replayed share to the next, at each learning rate; told is the weakest step, which is the one
    that rises beyond noise or, where none does, whose interval ends lowest. It holds for all at once (Bonferroni).
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
    fall, half, where = min([one for one in falls if one[0] + one[1] < 0] or falls, key=lambda one: one[0] - one[1])
    text = f"F falls with every step of the replayed share: the weakest falls by {gap(fall, half)}, from {where}"
    return [above("replay_monotone", text, fall, half)]


def replay_is_cheap(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """5 % replay costs less than 2 % of the target loss, where plain fine-tuning learns best."""
    tables = {lr: part.pivot_table(index=PAIRED, columns="replayed", values="target") for lr, part in by_rate(rows)}
    both = {lr: table[[0.0, 0.05]].dropna() for lr, table in tables.items() if {0.0, 0.05} <= set(table)}
    both = {lr: table for lr, table in both.items() if len(table)}
    if not both:
        return []
    table = min(both.values(), key=lambda table: table[0.0].mean())
    base = float(table[0.0].mean())
    cost, half = (value / base for value in contrast(table, 0.05, 0.0, noise, level))
    ends = f"+- {half:.2%}" if isfinite(half) else "(no interval)"
    text = f"5 % replay costs less than {LEARNED:.0%} of the target loss: {cost:+.2%} {ends} at equal {equal_in(rows)}"
    holds = True if cost + half < LEARNED else False if cost - half > LEARNED else None
    return [Claim("replay_cheap", text, cost, cost - half, cost + half, holds)]


def equal_in(rows: Any) -> str:
    """What runs with and without replay have in common: all tokens, or those of the new text (design.equal=target)."""
    real = real_replay(rows)
    plain, replay = (set(one["tokens"]) for one in (real[real["replayed"] == 0], real[real["replayed"] > 0]))
    return "tokens" if plain & replay else "new tokens"


def by_rate(rows: Any) -> Any:
    """Plain fine-tuning and replay of the earlier tasks' own text, by learning rate."""
    return real_replay(rows).groupby("lr")


def fast_forgets(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """Plain fine-tuning forgets more at its highest learning rate than at its lowest."""
    plain = rows[rows["method"] == PLAIN].pivot_table(index=PAIRED, columns="lr", values="F")
    if len(plain.columns) < 2:
        return []
    low, high = min(plain), max(plain)
    more, half = contrast(plain, high, low, noise, level)
    if more != more:
        return []
    rates = f"{low:g} to {high:g}"
    text = f"a high learning rate forgets more: {gap(more, half)} from {rates}"
    return [above("fast_forgets", text, more, half)]


def averaging(rows: Any, level: float) -> list[Claim]:
    """On the line between start and end both losses lie below their chord: the mean of weights is better than the mean
    of losses. Middle and ends are one run, so a run has one gain; those of a seed share a base and are averaged.
    """
    line = rows[rows["method"] == "wise"]
    alpha = line["setting"].str.extract(r"a=([0-9.]+)$")[0].astype(float)
    keyed = line.assign(alpha=alpha).pivot_table(index=["seed", "run"], columns="alpha", values=["F", "target"])
    wanted = [("F", 0.0), ("F", 0.5), ("F", 1.0), ("target", 0.0), ("target", 0.5), ("target", 1.0)]
    if not len(line) or not set(wanted) <= set(keyed.columns):
        return []
    made = []
    for name, what in (("F", "forgetting"), ("target", "target loss")):
        gain = ((keyed[name, 0.0] + keyed[name, 1.0]) / 2 - keyed[name, 0.5]).groupby("seed").mean().dropna()
        half = pooled([gain.to_numpy()]).half_width(level, 1 / max(len(gain), 1))
        text = f"half-way between start and end the {what} is below the chord: by {gap(gain.mean(), half)}"
        made.append(above(f"averaging_{name}", text, float(gain.mean()), half))
    return made


def gap(value: float, half: float) -> str:
    """A difference in nats with its interval, or that there is none."""
    return f"{value:+.4f} +- {half:.4f} nats" if isfinite(half) else f"{value:+.4f} nats (no interval)"


def against_plain(found: Sequence[Matched]) -> list[Claim]:
    """Each method forgets less than plain fine-tuning with a lower learning rate, at the same target loss."""
    made = []
    for one in found:
        if one.method != PLAIN and one.pairs:
            text = (
                f"{one.method} forgets less than plain fine-tuning at equal target loss: by {gap(one.less, one.half)}"
            )
            made.append(above(f"matched_{one.method}", text, one.less, one.half))
    return made


BASE = ["N", "M"]  # cells of one size and ratio go on from the same bases, so they are no independent samples
TRENDS = (
    ("grows_with_new_text", "beside", 1.0, "F grows with new text"),
    ("grows_with_pretraining", "M", 1.0, "F grows with pre-training tokens per parameter"),
    ("falls_with_size", "N", -1.0, "F falls with size"),
    ("falls_with_replay", "p", -1.0, "F falls with the replayed share"),
)


def trends(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """Claims on F from the least to the largest value of each input, replay apart from the others; all at once
    (Bonferroni). An input that does not vary makes none.

    rows  the cells of a grid: N, M, p, n (seeds), F, their mean, and the steps of the plain cell `beside` them
    """
    found = [(*one, list(pairs(rows, one[1]))) for one in TRENDS]
    found = [one for one in found if one[-1]]
    each = 1 - (1 - level) / (1 + len(found))  # the growth with new text is asked twice
    made = []
    for code, column, sign, text, ends in found:
        rises = [sign * (high["F"] - low["F"]) for low, high in ends]
        made.append(claim(code, text, column, rises, ends, noise.half_width(each, terms(ends))))
        if column == "beside":
            longer = ends[0][1][column] / ends[0][0][column]
            slower = [longer * low["F"] - high["F"] for low, high in ends]
            half = noise.half_width(each, terms(ends) * (1 + longer**2) / 2)
            made.append(claim("power_below_1", "F grows more slowly than new text does", column, slower, ends, half))
    return made


def pairs(rows: Any, column: str) -> Iterator[tuple[Any, Any]]:
    """The cells at the least and at the largest value of an input, wherever both are, all else equal."""
    kept = rows if column == "p" else rows[rows["p"] == 0]
    low, high = kept[column].min(), kept[column].max()
    others = [name for name in ("N", "M", "beside", "p") if name != column]
    for _, one in kept.groupby(others):
        ends = [one[one[column] == value] for value in (low, high)]
        if low < high and all(map(len, ends)):
            yield ends[0].iloc[0], ends[1].iloc[0]


def terms(ends: list[tuple[Any, Any]]) -> float:
    """Variance of the mean difference over that of a run: as many independent differences as there are bases."""
    bases = min(len({tuple(cell[BASE]) for cell in side}) for side in zip(*ends, strict=True))
    return float(np.mean([1 / low["n"] + 1 / high["n"] for low, high in ends])) / bases


def claim(code: str, text: str, column: str, values: list[float], ends: list[tuple[Any, Any]], half: float) -> Claim:
    low, high = ends[0][0][column], ends[0][1][column]
    span = f"{min(values):+.4f} to {max(values):+.4f} over {len(values)} cells"
    unit = {"beside": " steps", "M": " tokens per parameter", "N": " parameters", "p": " of the tokens"}[column]
    mean = float(np.mean(values))
    return above(code, f"{text}: by {gap(mean, half)} from {low:g} to {high:g}{unit}, {span}", mean, half)
