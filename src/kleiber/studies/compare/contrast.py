"""Estimates with intervals and verdicts on claims about fine-tuned runs: replay, learning rates, averages, trends.

A claim without the runs that test it is left out. Differences are within seeds, whose runs share a base, and their
noise is pooled over all settings. `trends` tests how forgetting F changes from one end of an input to the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from kleiber.studies.compare.decision import Criterion, Estimate, estimate_around
from kleiber.studies.compare.noise import Noise, pooled, within_seeds
from kleiber.studies.compare.rows import PLAIN, Rows, label
from kleiber.studies.compare.verdicts import POSITIVE, verdict
from kleiber.types import Json, Row

PAIRED = ["seed", "beside"]  # one base, and fine-tuning of one length
LEARNED = 0.02  # the loss of target quality, relative, that replay is said to stay below
QUESTIONS = {  # that are asked of two arms
    "matched": "{arm} forgets less than {against} at equal target loss",
    "forgets_less": "{arm} forgets less than {against}, each at its best rate",
    "learns_less": "{arm} learns less than {against}, each at its best rate",
}
WITHIN = "at equal target loss {arm} and {against} forget the same, to {margin:g} nats"


def format_level(estimate: Estimate) -> str:
    """Returns a mean that is no difference as text, such as `1.6333 [1.6000, 1.6666]`."""
    ends = "(no interval)" if estimate.lo is None else f"[{estimate.lo:.4f}, {estimate.hi:.4f}]"
    return f"{estimate.value:.4f} {ends}"


@dataclass(frozen=True)
class Difference:
    """How much less an arm forgets or learns than another, and the claim about it.

    question  a key of QUESTIONS
    margin    of the claim that the two differ by less; 0 for the claim that the difference is positive
    bounds    for both arms, whether their F is an upper bound: then the difference is at least or at most the estimate
    """

    code: str
    question: str
    arm: str
    against: str
    estimate: Estimate
    margin: float = 0.0
    bounds: tuple[bool, bool] = (False, False)

    @property
    def bound(self) -> str:
        """What the difference is if not the estimate: at least, at most, or not bounded."""
        return {(True, False): "at least", (False, True): "at most", (True, True): "not bounded by"}.get(
            self.bounds, ""
        )

    @property
    def measure(self) -> str:
        """What differs, as the title of a panel."""
        measure = "target loss above" if self.question == "learns_less" else "F below"
        return f"{measure} {label(self.against)}, {'equal target loss' if self.question == 'matched' else 'best rates'}"

    @property
    def verdict(self) -> Json:
        """The verdict of findings.json."""
        text = WITHIN if self.margin else QUESTIONS[self.question]
        text = text.format(arm=label(self.arm), against=label(self.against), margin=self.margin)
        criterion = Criterion("within", self.margin) if self.margin else POSITIVE
        least, most = self.bounds
        test = replace(
            self.estimate,
            lo=-math.inf if most and self.estimate.lo is not None else self.estimate.lo,
            hi=math.inf if least and self.estimate.hi is not None else self.estimate.hi,
        )
        return verdict(self.code, text, self.estimate, criterion, test, f"{self.bound} ".lstrip())

    def row(self) -> Json:
        """The row of the table of differences."""
        return {"arm": label(self.arm), "difference": self.measure, "is": self.bound, **asdict(self.estimate)}


def verdicts_on_forgetting(rows: Rows, level: float) -> list[Json]:
    """Verdicts on replay, learning rates and averages that these runs can test, at the confidence level `level`."""
    rows = rows.assign(beside=beside(rows))
    noise = {name: within_seeds(rows, name) for name in ("F", "target")}
    return [
        *replay_is_monotone(rows, noise["F"], level),
        *replay_is_cheap(rows, noise["target"], level),
        *fast_forgets(rows, noise["F"], level),
        *averaging(rows, level),
    ]


def contrast(table: Rows, arm: float, other: float, noise: Noise, level: float) -> Estimate | None:
    """Mean of arm - other over the rows that have both columns; None without such rows."""
    gaps = (table[arm] - table[other]).dropna()
    if not len(gaps):
        return None
    return estimate_around(float(gaps.mean()), noise.half_width(level, 2 / len(gaps)), len(gaps), "nats")


def by_rate(rows: Rows, measure: str) -> dict[float, Rows]:
    """A measure of plain fine-tuning and of replay of the earlier tasks' text, pairs x replayed share, by rate."""
    parts: Rows = real_replay(rows).groupby("lr")
    return {lr: part.pivot_table(index=PAIRED, columns="replayed", values=measure) for lr, part in parts}


def real_replay(rows: Rows) -> Rows:
    """The rows of plain fine-tuning, and of replay of the text of the earlier tasks with the largest memory."""
    replay, kept = rows["method"] == "replay", rows["kept"]
    return rows[(rows["method"] == PLAIN) | (replay & (kept == kept[replay].max()))]


def beside(rows: Rows, by: Sequence[str] = ()) -> list[float]:
    """For each row the steps of the plain runs, equal in `by`, that it is compared with; nan without plain runs.

    These have as many steps or, where replay was added to the budget (design.equal=target), as much new text.
    """
    keys = list(zip(*(rows[name] for name in by), strict=True)) or [()] * len(rows)
    plain: dict[tuple[float, ...], set[float]] = {}
    for key, steps, method in zip(keys, rows["steps"], rows["method"], strict=True):
        plain.setdefault(key, set()).update({steps} if method == PLAIN else ())
    nearest = []
    for key, steps, share in zip(keys, rows["steps"], rows["replayed"], strict=True):
        near = min(plain[key], key=lambda other, new=steps * (1 - share): abs(other - new), default=float("nan"))
        nearest.append(float(steps if steps in plain[key] else near))
    return nearest


def replay_is_monotone(rows: Rows, noise: Noise, level: float) -> list[Json]:
    """F falls with each step of the replayed share, at each learning rate, for all steps at once (Bonferroni).

    The estimate is that of the weakest step: one that rises beyond noise, else that whose interval ends lowest.
    """
    tables = by_rate(rows, "F")
    steps = [(lr, p, q) for lr, table in tables.items() for p, q in pairwise(sorted(table))]
    falls: list[tuple[float, Estimate, str]] = []
    for lr, p, q in steps:
        fall = contrast(tables[lr], p, q, noise, 1 - (1 - level) / len(steps))
        if fall is not None:
            lowest = -math.inf if fall.lo is None else fall.lo
            falls.append((lowest, fall, f"from {p:g} to {q:g} at learning rate {lr:g}"))
    if not falls:
        return []
    rises = [step for step in falls if step[1].hi is not None and step[1].hi < 0]
    _, fall, where = min(rises or falls, key=lambda step: step[0])
    return [verdict("replay_monotone", f"F falls with every step of the replayed share, least {where}", fall)]


def replay_is_cheap(rows: Rows, noise: Noise, level: float) -> list[Json]:
    """5 % replay costs less than 2 % of the target loss, where plain fine-tuning learns best."""
    tables = [table[[0.0, 0.05]].dropna() for table in by_rate(rows, "target").values() if {0.0, 0.05} <= set(table)]
    tables = [table for table in tables if len(table)]
    if not tables:
        return []
    table = min(tables, key=lambda table: table[0.0].mean())
    base, gaps = float(table[0.0].mean()), table[0.05] - table[0.0]
    cost, half = float(gaps.mean()) / base, noise.half_width(level, 2 / len(gaps)) / base
    text = f"5 % replay costs less than {LEARNED:.0%} of the target loss at equal {equal_in(rows)}"
    spare = estimate_around(LEARNED - cost, half, len(gaps), "")
    return [verdict("replay_cheap", text, estimate_around(cost, half, len(gaps), "of it"), test=spare)]


def equal_in(rows: Rows) -> str:
    """What is equal between runs with and without replay: tokens, or new tokens (design.equal=target)."""
    real = real_replay(rows)
    plain, replay = (set(part["tokens"]) for part in (real[real["replayed"] == 0], real[real["replayed"] > 0]))
    return "tokens" if plain & replay else "new tokens"


def fast_forgets(rows: Rows, noise: Noise, level: float) -> list[Json]:
    """Plain fine-tuning forgets more at its highest learning rate than at its lowest."""
    plain = rows[rows["method"] == PLAIN].pivot_table(index=PAIRED, columns="lr", values="F")
    if len(plain.columns) < 2:
        return []
    low, high = min(plain), max(plain)
    rise = contrast(plain, high, low, noise, level)
    text = f"a high learning rate forgets more, from {low:g} to {high:g}"
    return [] if rise is None else [verdict("fast_forgets", text, rise)]


def averaging(rows: Rows, level: float) -> list[Json]:
    """Averaged weights have a lower loss than the mean of the losses, for forgetting and for the target.

    The gain of a run is the mean loss of start and end less the loss half-way; gains of a seed are averaged.
    """
    line = rows[rows["method"] == "wise"]
    alpha = line["setting"].str.extract(r"a=([0-9.]+)$")[0].astype(float)
    keyed = line.assign(alpha=alpha).pivot_table(index=["seed", "run"], columns="alpha", values=["F", "target"])
    wanted = {(name, share) for name in ("F", "target") for share in (0.0, 0.5, 1.0)}
    if not len(line) or not wanted <= set(keyed.columns):
        return []
    verdicts = []
    for name, measure in (("F", "forgetting"), ("target", "target loss")):
        gain = ((keyed[name, 0.0] + keyed[name, 1.0]) / 2 - keyed[name, 0.5]).groupby("seed").mean().dropna()
        half = pooled([gain.to_numpy()]).half_width(level, 1 / max(len(gain), 1))
        text = f"half-way between start and end the {measure} is below the chord"
        verdicts.append(
            verdict(f"averaging_{name}", text, estimate_around(float(gain.mean()), half, len(gain), "nats"))
        )
    return verdicts


BASE = ["N", "M"]  # cells of one size and ratio go on from the same bases, so they are no independent samples
TRENDS = (
    ("grows_with_new_text", "beside", 1.0, "F grows with new text"),
    ("grows_with_pretraining", "M", 1.0, "F grows with pre-training tokens per parameter"),
    ("falls_with_size", "N", -1.0, "F falls with size"),
    ("falls_with_replay", "p", -1.0, "F falls with the replayed share"),
)


def trends(rows: Rows, noise: Noise, level: float) -> list[Json]:
    """Verdicts on the change of F from the least to the largest value of each varied input, all at once (Bonferroni).

    rows  the cells of a grid: N, M, p, n (seeds), F (mean over seeds), and `beside`, the steps of the plain cell
    """
    tested = [(*entry, list(pairs(rows, entry[1]))) for entry in TRENDS]
    tested = [entry for entry in tested if entry[-1]]
    each = 1 - (1 - level) / (1 + len(tested))  # the growth with new text is asked twice
    results = []
    for code, column, sign, text, ends in tested:
        rises = [sign * (high["F"] - low["F"]) for low, high in ends]
        results.append(trend(code, text, column, rises, ends, noise.half_width(each, terms(ends))))
        if column == "beside":
            longer = ends[0][1][column] / ends[0][0][column]
            slower = [longer * low["F"] - high["F"] for low, high in ends]
            half = noise.half_width(each, terms(ends) * (1 + longer**2) / 2)
            results.append(trend("power_below_1", "F grows more slowly than new text does", column, slower, ends, half))
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


def trend(code: str, text: str, column: str, values: list[float], ends: list[tuple[Row, Row]], half: float) -> Json:
    """The verdict on the claim that the mean of `values` is positive, with their range over the cells in its text."""
    low, high = ends[0][0][column], ends[0][1][column]
    span = f"{min(values):+.4f} to {max(values):+.4f} over {len(values)} cells"
    unit = {"beside": " steps", "M": " tokens per parameter", "N": " parameters", "p": " of the tokens"}[column]
    seeds = min(int(cell["n"]) for pair in ends for cell in pair)
    mean = estimate_around(float(np.mean(values)), half, seeds, "nats")
    return verdict(code, f"{text}, from {low:g} to {high:g}{unit}, {span}", mean)
