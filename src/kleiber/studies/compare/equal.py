"""Two arms at equal tokens, FLOPs, training time, parameters or memory.

An arm that was trained at several numbers of tokens has a loss for each. Where the arms do not meet in the quantity
that is held equal, the loss of one of them is interpolated between two of its budgets, linearly in the logarithms of
loss and quantity, so a power law is interpolated exactly. Nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kleiber.studies.compare.arms import Arm

QUANTITIES = {  # facts of an arm, by what `study.equal` calls them
    "tokens": "tokens",
    "flops": "flops",
    "seconds": "train_s",
    "params": "params",
    "memory": "memory",
}
LABELS = {
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "seconds": "training time",
    "params": "parameters",
    "memory": "inference memory",
}
GROWING = ("tokens", "flops", "seconds")  # quantities that grow along training, over which losses are interpolated
TOLERANCE = 0.05  # relative difference up to which a quantity counts as equal


@dataclass(frozen=True)
class Pair:
    """The losses of two arms by seed at an equal quantity, or why there are none.

    ratio         of the quantity, arm over against, where the losses were taken
    interpolated  name of the arm whose loss was interpolated; "" for none
    arms          the arms at the budgets that were used; all of them have to be tuned
    why           why the arms cannot be compared; "" where they can
    """

    ours: Mapping[int, float]
    theirs: Mapping[int, float]
    ratio: float | None = None
    interpolated: str = ""
    arms: tuple[Arm, ...] = ()
    why: str = ""

    @property
    def untuned(self) -> str:
        """Which arm is not tuned, and why; "" where both are."""
        return next((f"{arm.name} is not tuned: {arm.wrong}" for arm in self.arms if arm.wrong), "")


def pair(ours: Sequence[Arm], theirs: Sequence[Arm], equal: str) -> Pair:
    """Returns two arms at an equal quantity: at the largest at which they can be compared.

    ours, theirs  each one arm at several numbers of tokens
    equal         a key of QUANTITIES
    """
    fact = QUANTITIES[equal]
    names = f"{ours[0].name} and {theirs[0].name}"
    ours, theirs = ([arm for arm in ladder if fact in arm.facts] for ladder in (ours, theirs))
    if not ours or not theirs:
        return Pair({}, {}, why=f"{LABELS[equal]} of {names} was not measured")
    met = [(a, b) for a in ours for b in theirs if same(a, b, fact) and (equal in GROWING or same(a, b, "tokens"))]
    if met:
        a, b = max(met, key=lambda arms: arms[0].facts["tokens"])
        return Pair(a.at_best, b.at_best, a.facts[fact] / b.facts[fact], arms=(a, b))
    candidates = [(arm, theirs) for arm in ours] + [(arm, ours) for arm in theirs] if equal in GROWING else []
    for arm, others in sorted(candidates, key=lambda candidate: -candidate[0].facts[fact]):
        interpolated = interpolate(others, fact, arm.facts[fact])
        if interpolated is not None:
            losses, used = interpolated
            sides = (arm.at_best, losses) if others is theirs else (losses, arm.at_best)
            return Pair(*sides, 1.0, used[0].name, (arm, *used))
    a, b = (max(ladder, key=lambda arm: arm.facts["tokens"]) for ladder in (ours, theirs))
    ratio = a.facts[fact] / b.facts[fact]
    why = f"{names} differ in {LABELS[equal]} by a factor of {ratio:.2f}"
    if equal in GROWING:
        why += ", and no budget of one lies between two of the other"
    return Pair({}, {}, ratio, arms=(a, b), why=why)


def same(a: Arm, b: Arm, fact: str) -> bool:
    """Whether a quantity of two arms is equal within TOLERANCE."""
    return abs(math.log(a.facts[fact] / b.facts[fact])) <= math.log1p(TOLERANCE)


def interpolate(budgets: Sequence[Arm], fact: str, at: float) -> tuple[Mapping[int, float], tuple[Arm, Arm]] | None:
    """Returns the losses by seed at the quantity `at`, and the two budgets around it; None outside the budgets.

    Losses that are not positive are interpolated linearly, those of runs that diverged stay infinite.
    """
    ladder = sorted(budgets, key=lambda arm: arm.facts[fact])
    below = [arm for arm in ladder if arm.facts[fact] <= at]
    above = [arm for arm in ladder if arm.facts[fact] >= at]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    begin, end = math.log(low.facts[fact]), math.log(high.facts[fact])
    share = (math.log(at) - begin) / (end - begin) if end > begin else 0.0
    seeds = low.at_best.keys() & high.at_best.keys()
    return {seed: between(low.at_best[seed], high.at_best[seed], share) for seed in seeds}, (low, high)


def between(low: float, high: float, share: float) -> float:
    """Returns the value at `share` of the way from `low` to `high`, on a logarithmic scale where both are positive."""
    if min(low, high) > 0 and math.isfinite(low) and math.isfinite(high):
        return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return (1 - share) * low + share * high
