"""What is often said of forgetting, each asked of the runs at hand: an estimate, an interval, and yes, no or undecided.

A claim whose runs are not there is not made. Intervals come from seed noise pooled over all settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kleiber.studies.frontier import Matched, Noise, seed_noise
from kleiber.studies.outcomes import PLAIN, real_replay

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
    noise = {name: seed_noise(rows, name) for name in ("F", "target")}
    made = [
        *replay_is_monotone(rows, noise["F"], level),
        *replay_is_cheap(rows, noise["target"], level),
        *fast_forgets(rows, noise["F"], level),
        *averaging(rows, noise, level),
        *against_plain(found),
    ]
    return [claim for claim in made if claim is not None]


def replay_is_monotone(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """F falls from each replayed share to the next, at each learning rate; the smallest fall is told."""
    falls: list[tuple[float, float, str]] = []
    part = real_replay(rows)
    for lr, one in part.groupby("lr"):
        means = one.groupby("replayed")["F"].agg(["mean", "size"]).sort_index()
        for (p, a), (q, b) in zip(means.iloc[:-1].iterrows(), means.iloc[1:].iterrows(), strict=True):
            half = noise.half_width(level, 1 / a["size"] + 1 / b["size"])
            falls.append((a["mean"] - b["mean"], half, f"{p:g} to {q:g} at learning rate {lr:g}"))
    if not falls:
        return []
    fall, half, where = min(falls)
    text = f"F falls with every step of the replayed share: least fall {fall:.4f} +- {half:.4f} nats, from {where}"
    return [above("replay_monotone", text, fall, half)]


def replay_is_cheap(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """5 % replay costs less than 2 % of the target loss at equal compute, where plain fine-tuning learns best."""
    plain = rows[rows["method"] == PLAIN].groupby("lr")["target"].agg(["mean", "size"])
    some = real_replay(rows)
    some = some[abs(some["replayed"] - 0.05) < 1e-9]
    some = some.groupby("lr")["target"].agg(["mean", "size"])
    shared = plain.index.intersection(some.index)
    if not len(shared):
        return []
    lr = plain.loc[shared, "mean"].idxmin()
    base, other = plain.loc[lr], some.loc[lr]
    cost = other["mean"] / base["mean"] - 1
    half = noise.half_width(level, 1 / base["size"] + 1 / other["size"]) / base["mean"]
    text = f"5 % replay costs less than {LEARNED:.0%} of the target loss: {cost:+.2%} +- {half:.2%} at equal tokens"
    holds = True if cost + half < LEARNED else False if cost - half > LEARNED else None
    return [Claim("replay_cheap", text, cost, cost - half, cost + half, holds)]


def fast_forgets(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """Plain fine-tuning forgets more at its highest learning rate than at its lowest."""
    plain = rows[rows["method"] == PLAIN].groupby("lr")["F"].agg(["mean", "size"]).sort_index()
    if len(plain) < 2:
        return []
    low, high = plain.iloc[0], plain.iloc[-1]
    more, half = high["mean"] - low["mean"], noise.half_width(level, 1 / low["size"] + 1 / high["size"])
    rates = f"{plain.index[0]:g} to {plain.index[-1]:g}"
    text = f"a high learning rate forgets more: {more:+.4f} +- {half:.4f} nats from {rates}"
    return [above("fast_forgets", text, more, half)]


def averaging(rows: Any, noise: dict[str, Noise], level: float) -> list[Claim]:
    """On the line between start and end both losses lie below their chord: the mean of weights is better than the mean
    of losses. The chord's ends are the same run, so only the middle has noise of its own.
    """
    line = rows[rows["method"] == "wise"]
    alpha = line["setting"].str.extract(r"a=([0-9.]+)$")[0].astype(float)
    keyed = line.assign(alpha=alpha).pivot_table(index="run", columns="alpha", values=["F", "target"])
    wanted = [("F", 0.0), ("F", 0.5), ("F", 1.0), ("target", 0.0), ("target", 0.5), ("target", 1.0)]
    if not len(line) or not set(wanted) <= set(keyed.columns):
        return []
    made = []
    for name, what in (("F", "forgetting"), ("target", "target loss")):
        gain = (keyed[name, 0.0] + keyed[name, 1.0]) / 2 - keyed[name, 0.5]
        half = noise[name].half_width(level, 1.5 / len(gain))
        text = f"half-way between start and end the {what} is below the chord: by {gain.mean():+.4f} +- {half:.4f} nats"
        made.append(above(f"averaging_{name}", text, float(gain.mean()), half))
    return made


def against_plain(found: Sequence[Matched]) -> list[Claim]:
    """Each method forgets less than plain fine-tuning with a lower learning rate, at the same target loss."""
    named = {one.method: one for one in found if one.reached}
    if PLAIN not in named:
        return []
    plain, made = named[PLAIN], []
    for name, one in named.items():
        if name != PLAIN:
            less = plain.F - one.F
            half = float(((one.hi - one.F) ** 2 + (plain.hi - plain.F) ** 2) ** 0.5)
            text = f"{name} forgets less than plain fine-tuning at equal target loss: by {less:+.4f} +- {half:.4f} nats"
            made.append(above(f"matched_{name}", text, less, half))
    return made
