"""Sentences about claims: statements from their keys, measures and labels, and the answer of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter

from kleiber.studies.claims import EQUAL, Claim, Levels, Result, Selection, expand
from kleiber.studies.decision import Decision, Estimate
from kleiber.types import Row

Label = Callable[[str, object], str]  # what people call a value of a key
MOST_SENTENCES = 3  # claims that an answer states
ORDER = (Decision.SUPPORTED, Decision.CONTRADICTED, Decision.UNDECIDED, Decision.NOT_TESTED)
CONTRARY = {"lower": "higher", "higher": "lower", "not_lower": "lower", "not_higher": "higher"}
CONTRARY_BY = {"lower": "not_lower", "higher": "not_higher", "not_lower": "lower", "not_higher": "higher"}  # a margin


def statement(claim: Claim, measure: str, unit: str, label: Label) -> str:
    """Returns a claim as a sentence without a period.

    measure  what people call the measure
    label    returns what people call a value of a key
    """
    if claim.text:
        values = {key: label(key, value) for _, side in reversed(claim.sides) for key, value in side.items()}
        return claim.text.format_map(values)
    amount = f"{claim.margin:g} {unit}".strip()
    negation, _, comparative = claim.direction.rpartition("_")
    by = f" by more than {amount}" if claim.margin else ""
    against = {**claim.of, **(claim.against or {})}
    ours, theirs, shared = group(claim.of, against, label), group(against, claim.of, label), ""
    common = {key: value for key, value in claim.of.items() if against[key] == value and key not in (claim.than or {})}
    if claim.against is not None and common:
        shared = f", for {group(common, {}, label)}"
    if claim.than is not None:
        measure = f"the difference in {measure} between {ours} and {theirs}"
        of = {key: claim.of.get(key, value) for key, value in claim.than.items()}
        ours, theirs = group(of, claim.than, label), group(claim.than, of, label)
    if claim.direction == "within":
        text = f"{measure} differs by less than {amount} between {ours} and {theirs}"
    elif claim.against is None:
        than = f"{claim.less:g} {unit}".strip()
        text = f"{measure} of {group(claim.of, {}, label)} is {'not ' * bool(negation)}{comparative} than {than}{by}"
    else:
        text = f"{measure} is {'not ' * bool(negation)}{comparative}{by} with {ours} than with {theirs}"
        text += f", by more than {claim.less:g}" if claim.less else ""
    text += shared
    return text if claim.equal is None else f"{text}, at equal {EQUAL[claim.equal]}"


def group(side: Selection, other: Selection, label: Label) -> str:
    """Returns the name of a group: the values of the keys in which it differs from the other group, else all."""
    differing = {key: value for key, value in side.items() if other.get(key) != value}
    named = [label(key, value) for key, value in (differing or side).items()]
    return ", ".join(filter(None, named)) or "all runs"


def contrary(claim: Claim) -> Claim | None:
    """Returns what holds where a claim is contradicted; None where no claim says it."""
    opposite = (CONTRARY_BY if claim.margin else CONTRARY).get(claim.direction)
    return None if opposite is None or claim.text else replace(claim, direction=opposite)


@dataclass(frozen=True)
class Number:
    """A number in the answer of a study: what it is, as a claim without direction, and its format.

    style  of its numbers, which are then without their unit; "" for three digits with the unit
    """

    claim: Claim
    style: str = ""

    def text(self, estimate: Estimate) -> str:
        """Returns the estimate as the answer shows it: a difference with its sign, and with its interval."""
        if self.style:
            return " ".join(replace(estimate, unit="").text(self.style).split())
        return " ".join(estimate.text(".3g" if self.claim.against is None else "+.3g").split())


def read_answer(node: Row | None, defaults: Row, levels: Levels) -> tuple[str, dict[str, Number]]:
    """Returns the text of an answer, and its numbers by name. Raises ValueError, which names the key."""
    if node is None:
        return "", {}
    values = node.get("values") or {}
    unknown = [name for name in node if name not in ("text", "values")]
    if unknown or not isinstance(values, Mapping) or not node.get("text"):
        raise ValueError(f"study.answer={dict(node)} must have the form {{text: TEXT, values: {{NAME: ...}}}}")
    numbers = {}
    for name, value in values.items():
        try:
            style = str(value.get("format") or "")
            entry = {key: item for key, item in value.items() if key != "format"}
            claims = expand({**defaults, "of": {}, **entry}, levels)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"study.answer.values.{name}: {error}") from None
        numbers[str(name)] = Number(claims[0], style)
    absent = [name for _, name, _, _ in Formatter().parse(str(node["text"])) if name and name not in numbers]
    if absent:
        raise ValueError(f"study.answer.text names {absent[0]}, which study.answer.values lacks: {', '.join(numbers)}")
    return str(node["text"]), numbers


def answer_text(declared: str, results: Sequence[Result], sentence: Callable[[Result], str]) -> str:
    """Returns the answer of a study: the declared one, else its first claims, supported ones first, and the counts.

    sentence  returns what the answer says of a claim
    """
    if not results:
        return declared or "The study states no claims; the tables have its estimates."
    ordered = [result for decision in ORDER for result in results if result.decision == decision]
    sentences = [declared] if declared else [sentence(result) for result in ordered[:MOST_SENTENCES]]
    return " ".join([*sentences, counts_text(results)] if declared or len(results) > 1 else sentences)


def counts_text(results: Sequence[Result]) -> str:
    """Returns how many claims are supported, contradicted, undecided and not tested."""
    counts = Counter(result.decision for result in results)
    parts = [f"{counts[decision]} {decision}" for decision in ORDER if counts[decision]]
    return f"Claims: {', '.join(parts)}."


def decided(result: Result, measure: str, unit: str, label: Label) -> str:
    """Returns the decision of a claim as a sentence, of a contradicted claim with what holds in its place.

    measure, unit, label  as in `statement`
    """
    text, kind = result.question.text, str(result.decision).capitalize()
    opposite = contrary(result.claim) if result.decision == Decision.CONTRADICTED else None
    if opposite is not None:
        text = statement(opposite, measure, unit, label)
    end = "" if result.estimate is None else f": {' '.join(result.estimate.text('+.3g').split())}"
    if result.decision == Decision.NOT_TESTED:
        end = f", since {result.why}"
    return f"{kind}: {text}{end}."
