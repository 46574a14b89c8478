"""The study `compare`: is one arm better than another, at equal what, and how sure is that?

Each arm enters at its learning rate of best mean over all seeds. An arm that is not tuned decides nothing. The measure
is compared at equal tokens, FLOPs, training time, parameters and memory; `equal` says which of these decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from kleiber.config.targets import runtime_signature
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import Arm, arm_name, differences_chart, each_arm
from kleiber.studies.compare.decision import (
    Claim,
    Decision,
    Estimate,
    gaps_by_seed,
    half_width,
    level_of_each,
    more_seeds_needed,
    overall,
    paired_difference,
)
from kleiber.studies.compare.equal import LABELS, QUANTITIES, Pair, pair
from kleiber.studies.compare.ladders import LOSS, higher_is_better, not_ready, read_ladders, uneven
from kleiber.studies.compare.rows import LOSS as LOSS_LABEL
from kleiber.studies.study import Findings, IntervalStudy
from kleiber.types import Count, Json, NonNegative

SCHEMA = "kleiber.compare/1"
NATS = "nats per token"


@dataclass(frozen=True)
class Compare(IntervalStudy):
    """Compares arms that the design `arms` trained, and decides claims about them.

    arm      of a cell: set by the design
    measure  column of the table of runs, such as loss or val/sst2/accuracy
    equal    what is held equal: tokens, flops, seconds (of training), params or memory (of inference)
    claims   claims {arm, against, direction: lower|higher|within, margin}; none: the second arm is better than the
             first, which means lower for losses and errors and higher for every other measure
    looks    number of times that the runs will be looked at, each time with more seeds, until the claims are decided.
             A study that is looked at more often decides nothing
    """

    decides: ClassVar[bool] = True

    arm: str | None = None
    measure: str = LOSS
    equal: str = "tokens"
    claims: Sequence[Mapping[str, str | NonNegative]] = field(default_factory=tuple)
    looks: Count = 1

    def __post_init__(self) -> None:
        if self.equal not in QUANTITIES:
            raise ValueError(f"study.equal={self.equal} must be one of {', '.join(QUANTITIES)}")
        for number, claim in enumerate(self.claims):
            read_claim(claim, f"study.claims[{number}]")

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the differences of the claims and decides them."""
        return compare(runs, self, arm_name)


def read_claim(node: Mapping[str, str | float], key: str) -> Claim:
    """Returns the claim of a config node. Raises ValueError, which names `key`, for other keys or values."""
    parameters = runtime_signature(Claim, "Claim").parameters
    if not {"arm", "against"} <= node.keys() <= parameters.keys():
        raise ValueError(f"{key}={dict(node)} must have the keys arm and against, and may have direction and margin")
    try:
        return Claim(**{**node, "arm": str(node["arm"]), "against": str(node["against"])})  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def compare(runs: Sequence[Run], study: Compare, arm_of: Callable[[Run], str | None]) -> Findings:
    """Compares the arms of runs.

    arm_of  the arm of a run; None for a run that belongs to no arm

    Raises ValueError for fewer than two arms, a claim about another arm, and a measure that no run has.
    """
    ladders = read_ladders(runs, study.measure, arm_of)
    claims = [read_claim(node, "study.claims") for node in study.claims] or default_claims(list(ladders), study.measure)
    for claim in claims:
        for name in (claim.arm, claim.against):
            if name not in ladders:
                raise ValueError(f"study.claims: {name} is not an arm of these runs, which have {', '.join(ladders)}")
    level = level_of_each(study.level, len(claims), study.looks)
    unit = NATS if study.measure == LOSS else study.measure.rpartition("/")[2]
    why_not = not_ready(runs, study.looks, arm_of)
    results = [judge(claim, ladders, study.equal, level, unit, why_not) for claim in claims]
    beside = [row for claim in claims for row in side_by_side(claim, ladders, level, unit)]
    decision = overall([result.decision for result in results])
    why = "; ".join(dict.fromkeys(result.why for result in results if result.decision == decision))
    longest = {name: ladder[-1] for name, ladder in ladders.items()}
    comparison = {
        "schema": SCHEMA, "measure": study.measure, "equal": study.equal, "level": study.level, "looks": study.looks,
        "decision": str(decision), "why": why, "estimates": [result.to_json(study.equal) for result in results],
        "more_seeds_needed": furthest([result.more_seeds for result in results]),
    }  # fmt: skip
    gaps = [
        {"what": f"{row['arm']} - {row['against']}, equal {row['equal']}", **row}
        for row in beside
        if row["value"] is not None
    ]
    label = axis_label(study.measure)
    return Findings(
        headline=" ".join(result.sentence(study.measure) for result in results),
        verdicts=[result.verdict(study.measure) for result in results],
        tables={"Differences": beside, "Arms": [arm_row(arm, study.measure) for arm in longest.values()]},
        figures={**differences_chart(gaps, TITLE, label), **each_arm(longest, label)},
        methods=METHODS.format(level=f"{study.level:.0%}", claims=len(claims), looks=study.looks),
        comparison=comparison,
    )


TITLE = "Difference between arms with its interval; at 0 they are equal"
METHODS = (
    "Every arm was trained at every one of its learning rates with every seed; runs with the same seed see the same "
    "samples in the same order. An arm enters at the rate of best mean over all seeds. It counts as tuned with at "
    "least five rates and three seeds, if its best rate is neither the least nor the largest, and if all arms have as "
    "many rates with the same spacing. Differences are paired by seed. Intervals are Student's; together they have a "
    "confidence of {level} over {claims} claims and {looks} looks (Bonferroni). Where arms do not meet in what is held "
    "equal, the loss of one is interpolated between two of its budgets, on logarithmic scales."
)


def axis_label(measure: str) -> str:
    """The label of an axis: `accuracy (sst2)` for val/sst2/accuracy."""
    place, _, metric = measure.rpartition("/")
    return LOSS_LABEL if measure == LOSS else f"{metric} ({place.removeprefix('val/')})"


def arm_row(arm: Arm, measure: str) -> Json:
    """A row of the table of arms, with the measure under its own name."""
    return {measure if name == LOSS else name: value for name, value in arm.row().items()}


@dataclass(frozen=True)
class Result:
    """A claim with its estimate, the decision, the reason for it, and how many more seeds would decide it."""

    claim: Claim
    estimate: Estimate | None
    decision: Decision
    why: str
    tuned: bool
    more_seeds: int | None = None
    expected_half: float | None = None

    def to_json(self, equal: str) -> Json:
        """The entry of `estimates` in findings.json."""
        nothing: Json = dict.fromkeys(("value", "lo", "hi", "n", "unit"))
        numbers = asdict(self.estimate) if self.estimate else nothing
        names = {"arm": self.claim.arm, "against": self.claim.against, "equal": equal}
        claim = {"direction": self.claim.direction, "margin": self.claim.margin, "decision": str(self.decision)}
        return {**names, **numbers, "tuned": self.tuned, **claim}

    def sentence(self, measure: str) -> str:
        """The decision as a sentence with the estimate, or with what is missing."""
        text = f"{self.claim.text(measure)}: {self.decision}"
        if self.estimate is not None:
            text += f", difference {self.estimate.text()}"
        if self.decision != Decision.UNDECIDED:
            return f"{text}; {self.why}." if self.decision == Decision.NOT_TESTED else f"{text}."
        if self.more_seeds is None:
            return f"{text}; more seeds are not expected to decide it."
        return f"{text}; {self.more_seeds} more seeds would give +-{self.expected_half:.4f}."

    def verdict(self, measure: str) -> Json:
        """The verdict of findings.json."""
        level = "note" if self.decision == Decision.SUPPORTED else "warn"
        return {"code": f"claim_{self.decision.replace(' ', '_')}", "level": level, "text": self.sentence(measure)}


def judge(
    claim: Claim, ladders: Mapping[str, Sequence[Arm]], equal: str, level: float, unit: str, why_not: str
) -> Result:
    """Decides one claim at an equal quantity.

    why_not  why the runs as a whole decide nothing; "" where they can
    """
    sides = pair(ladders[claim.arm], ladders[claim.against], equal)
    estimate = paired_difference(sides.ours, sides.theirs, level, unit)
    problem = sides.why or sides.untuned or uneven(sides.arms) or why_not
    if problem or estimate is None or estimate.lo is None:
        problem = problem or "fewer than two seeds in common"
        return Result(claim, estimate, Decision.NOT_TESTED, problem, not sides.untuned)
    decision = claim.decide(estimate)
    ends = f"[{estimate.lo:.4g}, {estimate.hi:.4g}]"
    why = f"the {level:.1%} interval of the difference at equal {LABELS[equal]} is {ends}"
    if decision != Decision.UNDECIDED:
        return Result(claim, estimate, decision, why, True)
    gaps = gaps_by_seed(sides.ours, sides.theirs)
    seeds = more_seeds_needed(gaps, claim, level)
    half = None if seeds is None else half_width(gaps, len(gaps) + seeds, level)
    return Result(claim, estimate, decision, why, True, seeds, half)


def side_by_side(claim: Claim, ladders: Mapping[str, Sequence[Arm]], level: float, unit: str) -> list[Json]:
    """A row for each quantity that can be held equal: the difference of the arms, or why there is none."""
    rows = []
    for equal in QUANTITIES:
        sides: Pair = pair(ladders[claim.arm], ladders[claim.against], equal)
        estimate = paired_difference(sides.ours, sides.theirs, level, unit)
        numbers = asdict(estimate) if estimate else {"value": None, "lo": None, "hi": None, "n": 0, "unit": unit}
        note = sides.why or (f"{sides.interpolated} interpolated" if sides.interpolated else "")
        row = {"arm": claim.arm, "against": claim.against, "equal": LABELS[equal], **numbers, "ratio": sides.ratio}
        rows.append({**row, "tuned": not sides.untuned, "note": note})
    return rows


def default_claims(names: Sequence[str], measure: str) -> list[Claim]:
    """The claim that the second arm is better than the first."""
    return [Claim(names[1], names[0], "higher" if higher_is_better(measure) else "lower")]


def furthest(numbers: Sequence[int | None]) -> int | None:
    """The most further seeds that an undecided claim needs; None where none is undecided, or no number would do."""
    return max((number for number in numbers if number is not None), default=None)
