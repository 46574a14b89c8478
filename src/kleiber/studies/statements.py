"""Sentences about claims: the statement of a claim from its keys, its measure and the labels of its values."""

from __future__ import annotations

from collections.abc import Callable

from kleiber.studies.claims import EQUAL, Claim, Selection

Label = Callable[[str, object], str]  # what people call a value of a key


def statement(claim: Claim, measure: str, unit: str, label: Label) -> str:
    """Returns a claim as a sentence without a period.

    measure  what people call the measure
    label    returns what people call a value of a key
    """
    other = None if claim.against is None else {**claim.of, **claim.against}
    values = {key: label(key, value) for _, side in reversed(claim.sides) for key, value in side.items()}
    if claim.text:
        return claim.text.format_map(values)
    by = f" by more than {claim.margin:g}{f' {unit}' * bool(unit)}" if claim.margin else ""
    negation, _, comparative = claim.direction.rpartition("_")
    if claim.direction == "within":
        ours, theirs = group(claim.of, other, label), group(other or {}, claim.of, label)
        text = f"{measure} differs by less than {claim.margin:g}{f' {unit}' * bool(unit)} between {ours} and {theirs}"
    elif claim.against is None:
        where = group(claim.of, {}, label)
        text = f"{measure} of {where} is {'not ' if negation else ''}{comparative} than {claim.less:g}{by}"
    else:
        ours, theirs = group(claim.of, other, label), group(other or {}, claim.of, label)
        text = f"{measure} is {'not ' if negation else ''}{comparative}{by} with {ours} than with {theirs}"
        if claim.less:
            text += f", by more than {claim.less:g}"
    if claim.than is not None:
        text += f", by the difference between {group(claim.of, claim.than, label)} and {group(claim.than, {}, label)}"
    return text if claim.equal is None else f"{text}, at equal {EQUAL[claim.equal]}"


def group(side: Selection, other: Selection | None, label: Label) -> str:
    """Returns the name of a group: the values of the keys in which it differs from the other group, else all."""
    differing = {key: value for key, value in side.items() if not other or other.get(key) != value}
    return ", ".join(label(key, value) for key, value in (differing or side).items()) or "all runs"
