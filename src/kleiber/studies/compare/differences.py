"""Differences of two arms at equal tokens, FLOPs, training time, parameters or memory, and the claims they decide.

An arm that was trained at several numbers of tokens has a loss for each. Where the arms do not meet in the quantity
that is held equal, the loss of one of them is interpolated between two of its budgets, linearly in the logarithms of
loss and quantity, so a power law is interpolated exactly. Nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kleiber.studies.compare.arms import Arm, measured, uneven
from kleiber.studies.compare.decision import (
    QUANTITIES,
    Claim,
    Decision,
    Estimate,
    as_row,
    gaps_by_seed,
    half_width,
    more_seeds_needed,
    paired_difference,
)
from kleiber.studies.compare.labels import LOSS, axis_label
from kleiber.types import Json, Row
from kleiber.types.score import Score

GROWING = ("tokens", "flops", "seconds")  # quantities that grow along training, over which losses are interpolated
TOLERANCE = 0.05  # relative difference up to which a quantity counts as equal

Ladder = Sequence[Arm]  # one arm at several numbers of tokens
Ladders = Mapping[str, Ladder]  # by the name of the arm


@dataclass(frozen=True)
class Pair:
    """A measure of two arms by seed at an equal quantity, or why there is none.

    ratio         of the quantity, arm over against, where the measure was taken
    interpolated  name of the arm whose measure was interpolated; "" for none
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
        return next((f"{arm.name} is not tuned: {arm.untuned_because}" for arm in self.arms if arm.untuned_because), "")

    def row(self, level: float, unit: str) -> Json:
        """The columns of a table of differences, with the number of seeds on which `arm` is lower."""
        gaps = gaps_by_seed(self.ours, self.theirs)
        note = self.why or (f"{self.interpolated} interpolated" if self.interpolated else "")
        counts = {"lower on": sum(gap < 0 for gap in gaps), "ratio": self.ratio}
        return {
            **as_row(paired_difference(self.ours, self.theirs, level, unit)),
            **counts,
            "tuned": not self.untuned,
            "note": note,
        }


def pair(ours: Ladder, theirs: Ladder, equal: str, measure: str = LOSS) -> Pair:
    """Returns a measure of two arms at an equal quantity: at the largest at which they can be compared.

    Two budgets that are equal within TOLERANCE are preferred to an interpolation that is no further than that.

    equal  a key of QUANTITIES
    """
    fact, label = QUANTITIES[equal]
    names = f"{ours[0].name} and {theirs[0].name}"
    ours, theirs = ([arm for arm in ladder if fact in arm.facts] for ladder in (ours, theirs))
    if not ours or not theirs:
        return Pair({}, {}, why=f"{label} of {names} was not measured")
    met = [(a, b) for a in ours for b in theirs if same(a, b, fact) and (equal in GROWING or same(a, b, "tokens"))]
    meeting = max(met, key=lambda arms: arms[0].facts["tokens"], default=())
    reached = max((arm.facts[fact] for arm in meeting), default=0.0) * (1 + TOLERANCE)
    candidates = [(arm, theirs) for arm in ours] + [(arm, ours) for arm in theirs] if equal in GROWING else []
    for arm, others in sorted(candidates, key=lambda candidate: -candidate[0].facts[fact]):
        interpolated = interpolate(others, fact, arm.facts[fact], measure) if arm.facts[fact] > reached else None
        if interpolated is not None:
            values, used = interpolated
            sides = (arm.values(measure), values) if others is theirs else (values, arm.values(measure))
            return Pair(*sides, 1.0, used[0].name, (arm, *used))
    if meeting:
        a, b = meeting
        return Pair(a.values(measure), b.values(measure), a.facts[fact] / b.facts[fact], arms=(a, b))
    a, b = (max(ladder, key=lambda arm: arm.facts["tokens"]) for ladder in (ours, theirs))
    ratio = a.facts[fact] / b.facts[fact]
    why = f"{names} differ in {label} by a factor of {ratio:.2f}"
    if equal in GROWING:
        why += ", and no budget of one lies between two of the other"
    return Pair({}, {}, ratio, arms=(a, b), why=why)


def same(a: Arm, b: Arm, fact: str) -> bool:
    """Whether a quantity of two arms is equal within TOLERANCE."""
    return abs(math.log(a.facts[fact] / b.facts[fact])) <= math.log1p(TOLERANCE)


def interpolate(
    budgets: Ladder, fact: str, at: float, measure: str = LOSS
) -> tuple[Mapping[int, float], tuple[Arm, Arm]] | None:
    """Returns a measure by seed at the quantity `at`, and the two budgets around it; None outside the budgets.

    Values that are not positive are interpolated linearly, those of runs that diverged stay infinite.
    """
    ladder = sorted(budgets, key=lambda arm: arm.facts[fact])
    below = [arm for arm in ladder if arm.facts[fact] <= at]
    above = [arm for arm in ladder if arm.facts[fact] >= at]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    begin, end = math.log(low.facts[fact]), math.log(high.facts[fact])
    share = (math.log(at) - begin) / (end - begin) if end > begin else 0.0
    lows, highs = low.values(measure), high.values(measure)
    return {seed: between(lows[seed], highs[seed], share) for seed in lows.keys() & highs.keys()}, (low, high)


def between(low: float, high: float, share: float) -> float:
    """Returns the value at `share` of the way from `low` to `high`, on a logarithmic scale where both are positive."""
    if min(low, high) > 0 and math.isfinite(low) and math.isfinite(high):
        return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return (1 - share) * low + share * high


@dataclass(frozen=True)
class Result:
    """A claim with its estimate, the decision, the reason for it, and how many more seeds would decide it.

    measure  unit and label of what is compared
    """

    claim: Claim
    measure: Score
    estimate: Estimate | None
    decision: Decision
    why: str
    tuned: bool = False
    more_seeds: int | None = None
    expected_half: float | None = None

    def to_json(self) -> Json:
        """The entry of `estimates` in findings.json."""
        estimate = {**as_row(self.estimate), "unit": self.measure.unit}
        return {**asdict(self.claim), **estimate, "tuned": self.tuned, "decision": str(self.decision)}

    def row(self) -> Json:
        """The row of the table of claims."""
        return {"claim": self.text(), "decision": str(self.decision), **as_row(self.estimate), "why": self.why}

    def text(self) -> str:
        """The claim as a sentence without a period."""
        return self.claim.text(self.measure.label)

    def sentence(self) -> str:
        """The decision as a sentence with the estimate, or with what is missing."""
        text = f"{self.text()}: {self.decision}"
        if self.estimate is not None:
            text += f", difference {self.estimate.text()}"
        if self.decision == Decision.NOT_TESTED:
            text += f"; {self.why}"
        if self.decision == Decision.UNDECIDED:
            seeds = f"{self.more_seeds} more seed{'s' * (self.more_seeds != 1)}"
            text += (
                "; more seeds are not expected to decide it"
                if self.more_seeds is None
                else f"; {seeds} would narrow it to +-{self.expected_half:.4f}"
            )
        return f"{text}."

    def verdict(self) -> Json:
        """The verdict of findings.json."""
        level = "note" if self.decision == Decision.SUPPORTED else "warn"
        return {"code": f"claim_{self.decision.replace(' ', '_')}", "level": level, "text": self.sentence()}


def judge(claim: Claim, ladders: Ladders, level: float, why_not: str) -> Result:
    """Decides one claim.

    why_not  why the runs as a whole decide nothing; "" where they can
    """
    measure = measured(ladders, claim.measure)
    absent = [name for name in (claim.arm, claim.against) if name not in ladders]
    if absent:
        tuned_by = next(iter(ladders.values()))[0].measure
        why = f"no finished run of {' and '.join(absent)} has the measure {tuned_by}"
        return Result(claim, measure, None, Decision.NOT_TESTED, why)
    sides = pair(ladders[claim.arm], ladders[claim.against], claim.equal, claim.measure)
    problem = sides.why or sides.untuned or uneven(sides.arms) or why_not
    name = f"difference at equal {QUANTITIES[claim.equal].label}"
    return decide(claim, measure, sides.ours, sides.theirs, level, name, problem, tuned=not sides.untuned)


def decide(
    claim: Claim, measure: Score, ours: Mapping[int, float], theirs: Mapping[int, float], level: float, name: str,
    problem: str, tuned: bool,
) -> Result:  # fmt: skip
    """Decides a claim by the values of both sides by seed.

    measure  unit and label of what is compared
    name     of the difference of the two
    problem  why they decide nothing; "" where they can
    tuned    whether the arms are
    """
    estimate = paired_difference(ours, theirs, level, measure.unit)
    if problem or estimate is None or estimate.lo is None:
        problem = problem or f"fewer than two seeds in common have {claim.measure}"
        return Result(claim, measure, estimate, Decision.NOT_TESTED, problem, tuned)
    decision = claim.criterion.decide(estimate)
    why = f"the {level:.1%} interval of the {name} is [{estimate.lo:.4g}, {estimate.hi:.4g}]"
    if decision != Decision.UNDECIDED:
        return Result(claim, measure, estimate, decision, why, tuned)
    gaps = gaps_by_seed(ours, theirs)
    seeds = more_seeds_needed(gaps, claim.criterion, level)
    half = None if seeds is None else half_width(gaps, len(gaps) + seeds, level)
    return Result(claim, measure, estimate, decision, why, tuned, seeds, half)


def more_seeds_of_all(results: Sequence[Result]) -> int | None:
    """Returns how many further seeds would decide all undecided claims; None without one, and where one tells none."""
    needed = [result.more_seeds for result in results if result.decision == Decision.UNDECIDED]
    return max((seeds for seeds in needed if seeds is not None), default=None) if None not in needed else None


def side_by_side(names: tuple[str, str], ladders: Ladders, measure: str, level: float) -> list[Json]:
    """A row for each quantity that can be held equal: the difference of the arms, or why there is none."""
    arm, against = names
    rows, unit = [], measured(ladders, measure).unit
    for equal, (_, label) in QUANTITIES.items():
        sides = pair(ladders[arm], ladders[against], equal, measure)
        rows.append({"arm": arm, "against": against, "equal": label, **sides.row(level, unit)})
    return rows


def other_measures(claims: Sequence[Claim], ladders: Ladders, measure: str, level: float) -> dict[str, list[Row]]:
    """The differences of the claims about another measure than that of the study, by the label of the measure."""
    gaps: dict[str, list[Row]] = {}
    for claim in claims:
        if claim.measure != measure and ladders.keys() >= {claim.arm, claim.against}:
            sides = pair(ladders[claim.arm], ladders[claim.against], claim.equal, claim.measure)
            row = {"arm": claim.arm, "against": claim.against, "equal": QUANTITIES[claim.equal].label}
            other = measured(ladders, claim.measure)
            row |= sides.row(level, other.unit)
            gaps.setdefault(axis_label(other), []).extend([row] if row["value"] is not None else [])
    return gaps


def differences_drawn(
    claims: Sequence[Claim], pairs: Sequence[tuple[str, str]], ladders: Ladders, measure: str, level: float
) -> dict[str, Sequence[Row]]:
    """The differences in the figure, by the label of their measure, with intervals that decide the claims.

    Of a single pair they are all; of several pairs those of the claims, or at equal tokens.

    level  confidence level of each interval
    """
    table = [row for names in pairs for row in side_by_side(names, ladders, measure, level)]
    asked = {(claim.arm, claim.against, QUANTITIES[claim.equal].label) for claim in claims}
    claimed = {names[:2] for names in asked}
    asked |= {(*names, QUANTITIES["tokens"].label) for names in {*pairs} - claimed}
    rows = [
        row
        for row in table
        if row["value"] is not None and (len(pairs) == 1 or (row["arm"], row["against"], row["equal"]) in asked)
    ]
    return {axis_label(measured(ladders, measure)): rows, **other_measures(claims, ladders, measure, level)}
