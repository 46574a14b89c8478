"""Verdicts of findings.json on claims about a quantity, such as the mean over seeds of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kleiber.studies.compare.decision import Criterion, Decision, Estimate, level_of_each, mean_estimate
from kleiber.types import Json

POSITIVE = Criterion("higher")


def verdict(
    code: str, text: str, estimate: Estimate, criterion: Criterion = POSITIVE, test: Estimate | None = None,
    bound: str = "",
) -> Json:  # fmt: skip
    """Returns the verdict of findings.json on a claim.

    text       the claim as a sentence without its numbers
    estimate   of the quantity that the claim is about
    criterion  what has to hold of the quantity; by default that it is positive
    test       a quantity that decides the claim in place of the estimate
    bound      what the quantity is if not the estimate, such as "at least "
    """
    decision = criterion.decide(test or estimate)
    holds = {Decision.SUPPORTED: True, Decision.CONTRADICTED: False}.get(decision)
    numbers = {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
    sentence = f"{text}: {decision}, {bound}{estimate.text()}"
    return {"code": code, "level": "note", "text": sentence, **numbers, "holds": holds}


class MeanClaim(NamedTuple):
    """A claim about the mean of `values`, one of each seed.

    code, text         of the verdict; the text is a sentence without its numbers
    direction, margin  what has to hold of the mean, see `Criterion`
    unit               of the values
    """

    code: str
    text: str
    values: Sequence[float]
    direction: str = "lower"
    margin: float = 0.0
    unit: str = ""


def decide_means(claims: Sequence[MeanClaim], level: float) -> list[Json]:
    """Returns the verdicts on claims about means, all at once (Bonferroni); claims without values are left out.

    level  confidence level at which all intervals hold together
    """
    tested = [claim for claim in claims if claim.values]
    verdicts = []
    for claim in tested:
        estimate = mean_estimate(claim.values, level_of_each(level, len(tested), 1), claim.unit)
        assert estimate is not None
        verdicts.append(verdict(claim.code, claim.text, estimate, Criterion(claim.direction, claim.margin)))
    return verdicts
