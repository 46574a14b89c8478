"""Claims: statements about scores, one grammar for all studies, decided together by intervals.

A claim is about a measure of a group of runs (`of`), about its difference from that of another group (`against`), or
about a difference of differences (`than`). A group is chosen by the values of keys, such as `{arm: muon}`.

An interval decides a claim once. If you keep adding seeds until the interval excludes zero, you will be wrong more
often than the level says. So a study states its number of looks beforehand, and each look gets an equal part of the
error rate. The claims of a study are all right with probability `level`, at whichever look it stops. Claims about one
measure share the variance of their runs and are decided by joint intervals (`kleiber.inference`); measures share the
error by their numbers of claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kleiber.inference.contrasts import MODERATED, Contrast, Groups, Spread, estimate_family
from kleiber.studies.decision import (
    QUANTITIES,
    Criterion,
    Decision,
    Estimate,
    as_row,
    estimate_around,
    level_of_each,
    more_seeds_needed,
)
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

Selection = Mapping[str, object]  # values by key; runs that have all of them form a group
Samples = Mapping[Hashable, float]  # values of a measure by sample, such as a seed
Levels = Mapping[str, Sequence[object]]  # the values that runs have of each key, in order
NUMBERS, TEXTS, SELECTIONS = ("less", "margin"), ("measure", "equal", "direction", "text"), ("of", "against", "than")
KEYS = (*SELECTIONS, "arm", "each", *TEXTS, *NUMBERS)
TARGET = "target_loss"  # equal where arms that fine-tune are compared on their frontiers
RATE = "learning_rate"  # equal where arms are compared at one rate, without being tuned
EQUAL = {name: quantity.label for name, quantity in QUANTITIES.items()} | {RATE: "learning rate", TARGET: "target loss"}
EXTREMES = ("smallest", "largest")  # values of a numeric key that a claim can name without knowing them


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about a measure.

    of         the group of runs that it is about
    against    keys by which the group that is subtracted differs from `of`; None for a claim about a level
    than       keys that are replaced on both sides; the difference between these is subtracted as well
    less       a number that is subtracted, such as 0.5 for "relative to chance"
    equal      what both sides have equal, a key of EQUAL; None where both sides are measured on the same runs
    direction  lower, higher: the result is below -margin, or above margin; not_lower, not_higher: it is not; within: it
               lies between the two
    margin     in the unit of the measure
    text       the statement as a sentence without a period; "" for one made from the keys
    """

    of: Selection
    against: Selection | None = None
    than: Selection | None = None
    measure: str = "loss"
    less: float = 0.0
    equal: str | None = None
    direction: str = "lower"
    margin: float = 0.0
    text: str = ""

    def __post_init__(self) -> None:
        if self.equal is not None and self.equal not in EQUAL:
            raise ValueError(f"equal={self.equal} must be one of {', '.join(EQUAL)}")
        if self.than is not None and self.against is None:
            raise ValueError(f"than={dict(self.than)} needs `against`: it is subtracted from the difference of the two")
        if not math.isfinite(self.less):
            raise ValueError(f"less={self.less} must be a finite number")
        Criterion(self.direction, self.margin)  # raises ValueError if one of them is wrong

    @property
    def criterion(self) -> Criterion:
        """What has to hold of the result."""
        return Criterion(self.direction, self.margin)

    @property
    def sides(self) -> list[tuple[int, Selection]]:
        """The groups with their signs: of - against - (of with than - against with than)."""
        if self.against is None:
            return [(1, self.of)]
        signed = [(1, self.of), (-1, {**self.of, **self.against})]
        return signed if self.than is None else [*signed, *((-sign, {**side, **self.than}) for sign, side in signed)]

    def contrast(self, read: Callable[[Selection], Samples]) -> list[float]:
        """Returns the result of each sample that all sides have, in their order; `read` returns a side's samples."""
        parts = [(sign, read(side)) for sign, side in self.sides]
        common = set.intersection(*(set(samples) for _, samples in parts))
        order = [sample for sample in parts[0][1] if sample in common]
        return [sum(sign * samples[sample] for sign, samples in parts) - self.less for sample in order]


def read_claims(nodes: Sequence[Mapping[str, object]], key: str, defaults: Row, levels: Levels) -> list[Claim]:
    """Returns the claims of config nodes, one for each value that `each` names.

    key       of the nodes in the config, for messages
    defaults  measure, equal and others of the study where a node has none
    levels    the values of each key that the runs have; a claim about a value that they lack stays, and is not tested

    Raises ValueError, which names the key, for an invalid claim.
    """
    claims = []
    for at, node in enumerate(nodes):
        try:
            claims += expand({**defaults, **node}, levels)
        except ValueError as error:
            raise ValueError(f"{key}[{at}]: {error}") from None
    return claims


def expand(node: Mapping[str, object], levels: Levels) -> list[Claim]:
    """Returns the claims of one node. Raises ValueError for other keys or values."""
    unknown = [name for name in node if name not in KEYS]
    if unknown:
        raise ValueError(f"{unknown[0]} is not a key of a claim; the keys are {', '.join(KEYS)}")
    arm, against = node.get("arm"), node.get("against")
    if ("of" in node) == (arm is not None):
        raise ValueError("a claim needs either of={KEY: VALUE} or, short for of={arm: A}, arm=A")
    sides: dict[str, object] = {
        "of": node.get("of") if arm is None else {"arm": arm},
        "against": {"arm": against} if isinstance(against, str) else against,
        "than": node.get("than"),
    }
    for name, side in sides.items():
        if side is not None and not isinstance(side, Mapping):
            raise ValueError(f"{name}={side} must have the form {{KEY: VALUE}}")
    fields = {name: node[name] for name in (*TEXTS, *NUMBERS) if node.get(name) is not None}
    claims = [Claim(**{**fields, **sides})]  # type: ignore[arg-type]
    each = node.get("each") or {}
    if not isinstance(each, Mapping):
        raise ValueError(f"each={each} must have the form {{KEY: all}}, {{KEY: [...]}} or {{KEY: {{not: [...]}}}}")
    for name, chosen in each.items():
        values = chosen_levels(str(name), chosen, levels)
        claims = [replace(claim, of={**claim.of, name: value}) for claim in claims for value in values]
    return [with_levels(claim, levels) for claim in claims]


def chosen_levels(key: str, chosen: object, levels: Levels) -> Sequence[object]:
    """Returns the values that `each` names for a key: all, those of a list, or all but those of a list."""
    if isinstance(chosen, Sequence) and not isinstance(chosen, str):
        return chosen
    left_out = chosen.get("not") if isinstance(chosen, Mapping) and [*chosen] == ["not"] else None
    if chosen != "all" and not isinstance(left_out, Sequence):
        raise ValueError(f"each.{key}={chosen} must be all, a list of values, or {{not: [...]}}")
    if key not in levels:
        raise ValueError(f"each.{key}: the runs have no such key; they have {', '.join(levels)}")
    return [value for value in levels[key] if value not in (left_out or ())]


def with_levels(claim: Claim, levels: Levels) -> Claim:
    """Returns the claim with the values that `smallest` and `largest` stand for."""

    def value_of(key: str, value: object) -> object:
        """Returns the value of a key that `smallest` or `largest` stands for; others as they are."""
        if value not in EXTREMES:
            return value
        numbers = [number for number in levels.get(key, ()) if isinstance(number, int | float)]
        if not numbers:
            raise ValueError(f"{key}={value} needs a key with numbers; the keys of these runs are {', '.join(levels)}")
        return max(numbers) if value == "largest" else min(numbers)

    def resolved(side: Selection | None) -> Selection | None:
        return None if side is None else {key: value_of(key, value) for key, value in side.items()}

    return replace(claim, of=resolved(claim.of) or {}, against=resolved(claim.against), than=resolved(claim.than))


@dataclass(frozen=True, kw_only=True)
class Question:
    """A claim with what the runs say about it.

    text      the claim as a sentence without a period
    wording   writes a claim about the same groups as such a sentence; None where only `text` is known
    turned    whether verdicts subtract the group `of` from `against`, since `of` is the plain one
    values    the result of each sample
    unit      of the values
    limits    ends of the scale of the measure, at which the interval of a level is cut; None where there are none
    better    which values of the measure are better: lower, higher or none
    problem   why the runs decide nothing; "" where they can
    advice    what to add where there is a problem, with the command; "" where nothing is known to help
    tuned     whether all arms of the claim are tuned; None where no two arms are compared
    weights   of the groups of runs whose means are added; None for those of the sides of the claim
    groups    the cells whose variances are those of the groups, see `kleiber.inference.contrasts`; empty where values
              have to be paired
    paired    whether the sides share runs or bases, so that they are paired by design
    samples   what the values are of, for the method
    items     standard error over the items of a test that all samples share; 0 where it is in the values, or not known
    point     how the measure at the best rate is estimated; "" where no rate was chosen
    at        returns the estimate at a confidence level by a method of its own; None: the mean of the values
    open_ends whether the result may be below, and may be above, its interval, because a side is only a bound
    bound     which side is a bound, where an end is open
    method    how the interval of `at` is made
    """

    claim: Claim
    text: str
    wording: Callable[[Claim], str] | None = None
    turned: bool = False
    values: Sequence[float] = ()
    unit: str = ""
    limits: tuple[float, float] | None = None
    better: str = "none"
    problem: str = ""
    advice: str = ""
    tuned: bool | None = None
    weights: Mapping[Hashable, float] | None = None
    groups: Groups = field(default_factory=dict)
    paired: bool = False
    samples: str = "seeds"
    items: float = 0.0
    point: str = ""
    at: Callable[[float], Estimate | None] | None = None
    open_ends: tuple[bool, bool] = (False, False)
    bound: str = "one side is only a bound"
    method: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether there are values, and all of them are finite."""
        return bool(self.values) and all(map(math.isfinite, self.values))

    @property
    def family(self) -> tuple[object, ...]:
        """What questions have in common that share the variance of their runs."""
        return self.claim.measure, self.claim.equal, self.unit, self.samples, self.paired, bool(self.groups)

    @property
    def contrast(self) -> Contrast:
        """The weighted sum of means of groups that the claim is about."""
        sides: dict[Hashable, float] = {side_key(side): float(sign) for sign, side in self.claim.sides}
        return Contrast(sides if self.weights is None else self.weights, self.values)

    @property
    def cited(self) -> list[Hashable]:
        """The groups with cells that the claim is about; the others are those of the rest of the study."""
        return [name for name in self.contrast.weights if name in self.groups]

    def estimate(self, level: float, spread: Spread | None) -> Estimate | None:
        """Returns the estimate with its interval at the confidence level `level`; None where it is not finite.

        spread  of the mean of the values; None where there are fewer than two
        """
        if self.at is not None:
            return self.at(level)
        if not self.is_finite:
            return None
        half = math.nan if spread is None else spread.half_width(level)
        return estimate_around(math.fsum(self.values) / len(self.values), half, len(self.values), self.unit)

    def method_with(self, spread: Spread | None) -> str:
        """Returns how the interval is made."""
        if self.at is not None:
            return self.method
        name = "Student's t" if spread is None or spread.prior is None else "moderated t"
        pairing = "" if self.claim.against is None else ", paired" if spread is None or spread.paired else ", unpaired"
        over = f"{self.samples} and items" if self.items else self.samples
        return "; ".join(filter(None, [f"{name} over {over}{pairing}", self.point]))

    def tested(self, estimate: Estimate) -> Estimate:
        """Returns the estimate whose interval decides the claim."""
        if estimate.lo is None:
            return estimate
        below, above = self.open_ends
        return replace(estimate, lo=-math.inf if below else estimate.lo, hi=math.inf if above else estimate.hi)


def side_key(side: Selection) -> str:
    """Returns what tells the groups of claims apart: their keys with their values."""
    return ", ".join(f"{key}={side[key]}" for key in sorted(side))


@dataclass(frozen=True, kw_only=True)
class Result:
    """A question with its answer.

    level       confidence level of this interval, at which those of all claims hold together
    spread      the standard error of the mean of the values; None for an estimate by a method of its own
    more_seeds  further samples that would decide it, if mean and spread stay; None where that is not known
    looks       number of times that the runs may be looked at
    """

    question: Question
    estimate: Estimate | None
    decision: Decision
    why: str
    level: float
    spread: Spread | None = None
    more_seeds: int | None = None
    looks: int = 1

    @property
    def claim(self) -> Claim:
        """The claim that was decided."""
        return self.question.claim

    def estimate_json(self) -> Json:
        """Returns the entry of `estimates` in findings.json; two arms are named as `arm` and `against`."""
        claim = self.claim
        if claim.against is not None and [*claim.of] == [*claim.against] == ["arm"]:
            names = {"arm": claim.of["arm"], "against": claim.against["arm"]}
            return {"measure": claim.measure, **names, **self._numbers()}
        return {"measure": claim.measure, **self._sides(), **self._numbers()}

    def _sides(self) -> Json:
        claim = self.claim
        sides = {"of": claim.of, "against": claim.against, "than": claim.than}
        return {name: side and dict(side) for name, side in sides.items()}

    def _numbers(self) -> Json:
        claim, question = self.claim, self.question
        return {
            "less": claim.less, "equal": claim.equal, **as_row(self.estimate), "unit": question.unit,
            "better": question.better, "tuned": question.tuned,
            "method": question.method_with(self.spread), "prior": prior_json(self.spread), "level": self.level,
        }  # fmt: skip

    def to_json(self) -> Json:
        """Returns the entry of `claims` in findings.json."""
        decided = {"text": self.question.text, "decision": str(self.decision), "why": self.why}
        asked = {"direction": self.claim.direction, "margin": self.claim.margin}
        numbers = {"measure": self.claim.measure, **self._sides(), **self._numbers()}
        return {**decided, **asked, **numbers, "more_seeds_needed": self.more_seeds}


def prior_json(spread: Spread | None) -> Json | None:
    """Returns what a variance was shrunk to; df is None where all cells share one variance."""
    if spread is None or spread.prior is None:
        return None
    df = spread.prior.df
    return {"df": None if math.isinf(df) else df, "sd": spread.prior.sd, "cells": spread.cells}


def decide_together(
    questions: Sequence[Question], level: float, looks: int = 1, variance: str = MODERATED
) -> list[Result]:
    """Decides the claims of a study, all at the confidence level `level` together, at each of `looks` looks.

    variance  moderated or separate, see `kleiber.inference.contrasts.estimate_family`
    """
    each = level_of_each(level, max(len(questions), 1), looks)
    spreads: dict[int, tuple[float, Spread]] = {}
    families: dict[tuple[object, ...], list[int]] = {}
    for at, question in enumerate(questions):
        if question.at is None and question.is_finite and len(question.values) > 1:
            families.setdefault(question.family, []).append(at)
    for members in families.values():
        groups = {name: cells for at in members for name, cells in questions[at].groups.items()}
        groups |= {name: questions[at].groups[name] for at in members for name in questions[at].cited}
        together = 1 - (1 - each) * len(members)
        paired = questions[members[0]].paired
        contrasts = [questions[at].contrast for at in members]
        family = estimate_family(contrasts, groups, together, variance, paired)
        spreads |= dict(zip(members, zip(family.levels, family.spreads, strict=True), strict=True))
    spreads = {at: (single, replace(spread, fixed=questions[at].items)) for at, (single, spread) in spreads.items()}
    decided = [decide(question, *spreads.get(at, (each, None))) for at, question in enumerate(questions)]
    return [replace(result, looks=looks) for result in decided]


def decide(question: Question, level: float, spread: Spread | None = None) -> Result:
    """Decides one claim by its interval at the confidence level `level`."""
    estimate = question.estimate(level, spread)
    problem = question.problem
    if not problem and (estimate is None or estimate.lo is None):
        problem = f"fewer than two samples have {question.claim.measure} on every side"
    fields = {"question": question, "estimate": estimate, "level": level, "spread": spread}
    if problem or estimate is None or estimate.lo is None or estimate.hi is None:
        return Result(**fields, decision=Decision.NOT_TESTED, why=problem)
    criterion = question.claim.criterion
    decision = criterion.decide(question.tested(estimate))
    if estimate.lo == estimate.hi == 0 and question.claim.direction == "within":
        problem = f"{question.claim.measure} is equal on both sides in every sample, so its noise is not measured"
        return Result(**fields, decision=Decision.NOT_TESTED, why=problem)
    why = f"the {level:.1%} interval is {format_interval(estimate.lo, estimate.hi, '.4g')}"
    undecided = decision == Decision.UNDECIDED and spread is not None
    seeds = more_seeds_needed(estimate, spread, criterion, level) if undecided and spread is not None else None
    return Result(**fields, decision=decision, why=why, more_seeds=seeds)


def overall(results: Sequence[Result]) -> Decision | None:
    """Returns the decision of a study: that of its worst claim; None without claims."""
    decisions = {result.decision for result in results}
    order = (Decision.CONTRADICTED, Decision.NOT_TESTED, Decision.UNDECIDED, Decision.SUPPORTED)
    return next((decision for decision in order if decision in decisions), None)
