"""The register of the literature's claims, multirun/claims.yaml, decided by the records and shown as tables.

A claim has parts, each of which the records decide, with margin, level and family fixed in the register before the
records are read. `decision` is what they decided when the register was written; a test compares it with the records.

    claims     places of recorded claims, whose own direction, margin and guards decide
    intervals  places of entries with value, lo and hi, with `direction`, `margin`, `less` (subtracted) and `family`,
               the number of intervals that hold together; those of Student's t are widened to it (Bonferroni)
    bounds     places of numbers that must be at most `most`
    tests      places of p values of lack of fit, which contradict or leave undecided
    not_tested why the runs decide nothing, such as a single seed or an arm that is not tuned
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from kleiber.studies.decision import Criterion, Decision, Estimate
from kleiber.studies.laws.uncertainty import student_quantile
from pages.references import REPOSITORY, filled, lookup

REGISTER = REPOSITORY / "multirun/claims.yaml"
LEVEL = 0.9
VALUES = ("value", "difference", "F", "a")  # keys of the estimate of an entry


@dataclass(frozen=True)
class Part:
    """A part of a claim that the records decide; see the module."""

    decision: str
    where: str = ""
    claims: Sequence[str] = ()
    intervals: Sequence[str] = ()
    bounds: Sequence[str] = ()
    direction: str = "lower"
    margin: float = 0.0
    less: float = 0.0
    family: int = 1
    most: float = 0.0
    tests: Sequence[str] = ()
    not_tested: str = ""

    @property
    def places(self) -> Sequence[str]:
        return self.claims or self.intervals or self.bounds or self.tests

    def decisions(self) -> list[Decision]:
        """Returns the decision of each place."""
        if self.not_tested:
            return [Decision.NOT_TESTED]
        if self.claims:
            return [Decision(str(entry(place)["decision"])) for place in self.claims]
        if self.bounds:
            held = (float(str(lookup(place, REPOSITORY))) <= self.most for place in self.bounds)
            return [Decision.SUPPORTED if holds else Decision.CONTRADICTED for holds in held]
        if self.tests:
            found = [float(str(lookup(place, REPOSITORY))) < (1 - LEVEL) / len(self.tests) for place in self.tests]
            return [Decision.CONTRADICTED if misfit else Decision.UNDECIDED for misfit in found]
        criterion = Criterion(self.direction, self.margin)
        return [criterion.decide(estimate(entry(place), self.less, self.family)) for place in self.intervals]

    def decided(self) -> str:
        """Returns the decision, with the number of places of each where they differ."""
        counts = Counter(map(str, self.decisions()))
        return ", ".join(name if len(counts) == 1 else f"{name} {count}" for name, count in sorted(counts.items()))

    def shown(self) -> str:
        """Returns the decision and what it is about."""
        return f"{self.where}: **{self.decided()}**" if self.where else f"**{self.decided()}**"

    def rule(self) -> str:
        """Returns by what the part is decided: direction, margin, level, family, and the study."""
        if self.not_tested:
            return self.not_tested
        studies = ", ".join(dict.fromkeys(place.partition("/")[0] for place in self.places))
        if self.bounds:
            return f"at most {self.most:g} ({studies})"
        if self.tests:
            return f"p < {(1 - LEVEL) / len(self.tests):g} of the lack of fit ({studies})"
        if self.claims:
            found = [entry(place) for place in self.claims]
            rules = [
                condition(str(one["direction"]), *(float(str(one[key])) for key in ("margin", "less"))) for one in found
            ]
        else:
            rules = [condition(self.direction, self.margin, self.less)]
        return f"{', '.join(dict.fromkeys(rules))}; {self.together()} ({studies})"

    def together(self) -> str:
        """Returns the level of the intervals, and how many of them it holds for together."""
        record, _, path = self.places[0].partition(": ")
        claims = lookup(f"{record}: claims", REPOSITORY) if path.startswith("claims[") else []
        count = len(claims) if isinstance(claims, list) and claims else self.family
        return f"{LEVEL:.0%} for {count} together" if count > 1 else f"{LEVEL:.0%}"


@dataclass(frozen=True)
class Claim:
    """A claim of the literature with its source, its parts, and what was measured, as a template with references."""

    group: str
    claim: str
    parts: Sequence[Part]
    measured: str


def condition(direction: str, margin: float, less: float = 0.0) -> str:
    """Returns what must hold of a difference, such as `higher by more than 0.05`."""
    if direction == "within":
        return f"within {margin:g} of {less:g}"
    words = [
        direction.replace("_", " "),
        f"than {less:g}" if less else "",
        f"by more than {margin:g}" if margin else "",
    ]
    return " ".join(filter(None, words))


def entry(place: str) -> Mapping[str, object]:
    found = lookup(place, REPOSITORY)
    assert isinstance(found, dict), f"{place} is no entry"
    return found


def estimate(found: Mapping[str, object], less: float, family: int) -> Estimate:
    """Returns the estimate of an entry less a number, with an interval that holds together with those of its family.

    family  number of intervals; the recorded one is at LEVEL alone, from Student's t of n samples
    """
    name = next(name for name in VALUES if name in found)
    value, lo, hi = (float(str(found[end])) for end in (name, "lo", "hi"))
    n = int(str(found.get("n") or found.get("pairs") or 0))
    wider = 1.0
    if family > 1:
        wider = float(student_quantile(n - 1, 1 - (1 - LEVEL) / family) / student_quantile(n - 1, LEVEL))
    return Estimate(value - less, value - wider * (value - lo) - less, value + wider * (hi - value) - less, n, "")


@cache
def register() -> list[Claim]:
    """Returns the claims of the register."""
    nodes = yaml.load(REGISTER.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return [
        Claim(group, node["claim"], [Part(**part) for part in node["parts"]], node["measured"])
        for group, rows in nodes.items()
        for node in rows
    ]


def claims_table(group: str) -> str:
    """Returns the table of a group of claims."""
    rows = [
        [
            claim.claim,
            "; ".join(part.shown() for part in claim.parts),
            "; ".join(dict.fromkeys(part.rule() for part in claim.parts)),
            filled(claim.measured, REGISTER.parent),
        ]
        for claim in register()
        if claim.group == group
    ]
    head = ["claim", "decision here", "decided by", "what the runs say"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
