"""Sentences about claims: what a claim states, what the runs say about it, and the answer of a study.

A verdict is written in the direction of the result, so a contradicted claim is never stated as if it were true.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter

from kleiber.studies.claims import EQUAL, Claim, Levels, Question, Result, Selection, expand
from kleiber.studies.decision import Decision, Estimate, as_row, from_row
from kleiber.types import Json, Row

Label = Callable[[str, object], str]  # what people call a value of a key
ESTIMATE = ("value", "lo", "hi", "n", "unit")  # columns of an estimate in a table
MOST_SENTENCES = 2  # claims of one decision that an answer states
ORDER = (Decision.SUPPORTED, Decision.CONTRADICTED, Decision.UNDECIDED, Decision.NOT_TESTED)
CONTRARY = {"lower": "higher", "higher": "lower"}
MIRRORED = {**CONTRARY, "not_lower": "not_higher", "not_higher": "not_lower", "within": "within"}
COMPARATIVES = {"lower": ("lower", "less"), "higher": ("higher", "more")}  # words of texts, by direction
DENIED = "it does not hold that "  # in front of a claim whose contrary its text does not tell
SEEDS = ("seeds", "values of seed", "base models")  # samples of which a design adds more by design.seeds


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
    by = f" by more than {amount}" if claim.margin and not negation else ""
    against = {**claim.of, **(claim.against or {})}
    ours, theirs, shared = group(claim.of, against, label), group(against, claim.of, label), ""
    common = {key: value for key, value in claim.of.items() if against[key] == value and key not in (claim.than or {})}
    if claim.against is not None and common:
        shared = f", for {group(common, {}, label)}"
    if claim.than is not None:
        measure = f"the difference in {measure} between {ours} and {theirs}"
        of = {key: claim.of.get(key, value) for key, value in claim.than.items()}
        ours, theirs = group(of, claim.than, label), group(claim.than, of, label)
    size = f"{f'at most {amount}' if claim.margin else 'no'} {comparative}" if negation else comparative
    if claim.against is None:
        than, of = f"{claim.less:g} {unit}".strip(), group(claim.of, {}, label)
        relation = f"within {amount} of {than}" if claim.direction == "within" else f"{size} than {than}{by}"
        text = f"{measure} of {of} is {relation}"
    elif claim.direction == "within":
        text = f"{measure} with {ours} differs by at most {amount} from that with {theirs}"
    else:
        text = f"{measure} is {size}{by} with {ours} than with {theirs}"
        text += f", by more than {claim.less:g}" if claim.less else ""
    text += shared
    return text if claim.equal is None else f"{text}, at equal {EQUAL[claim.equal]}"


def group(side: Selection, other: Selection, label: Label) -> str:
    """Returns the name of a group: the values of the keys in which it differs from the other group, else all."""
    differing = {key: value for key, value in side.items() if other.get(key) != value}
    named = [label(key, value) for key, value in (differing or side).items()]
    return ", ".join(filter(None, named)) or "all runs"


def holds_instead(claim: Claim, estimate: Estimate) -> Claim:
    """Returns what the interval of an estimate shows in place of a claim that it contradicts."""
    lo, hi = estimate.lo or 0.0, estimate.hi or 0.0
    if claim.direction == "within":
        return replace(claim, direction="higher" if lo > 0 else "lower", margin=0.0)
    if claim.direction.startswith("not_"):
        return replace(claim, direction=claim.direction.removeprefix("not_"), margin=0.0)
    opposite = CONTRARY[claim.direction]
    if (lo > 0) if opposite == "higher" else (hi < 0):
        return replace(claim, direction=opposite, margin=0.0)
    return replace(claim, direction=f"not_{claim.direction}")


def strongest(claim: Claim, estimate: Estimate) -> Claim:
    """Returns a supported claim without its margin where the interval also excludes 0 on the side claimed."""
    if claim.direction == "within" or estimate.lo is None or estimate.hi is None:
        return claim
    side = "higher" if estimate.lo > 0 else "lower" if estimate.hi < 0 else ""
    agrees = side in (claim.direction, CONTRARY.get(claim.direction.removeprefix("not_")))
    return replace(claim, direction=side, margin=0.0) if agrees else claim


def claimed(claim: Claim, unit: str) -> str:
    """Returns in parentheses what a claim says, for a verdict that states what was found instead."""
    amount = f"{claim.margin:g} {unit.removeprefix('share ')}".strip()
    negation, _, side = claim.direction.rpartition("_")
    if claim.direction == "within":
        what = f"a difference of at most {amount}"
    elif negation:
        what = f"at most {amount} {side}" if claim.margin else f"not {side}"
    else:
        what = f"more than {amount} {side}"
    return f" (claimed: {what})"


def contrasted(claim: Claim, text: str) -> str:
    """Returns a text that states the contrary of a claim with what the claim said: `is higher (not lower) with ...`.

    Without it a reader takes the finding for the claim that is contradicted.
    """
    words, contrary = COMPARATIVES[claim.direction], COMPARATIVES[CONTRARY[claim.direction]]
    match = re.search(rf"\b(a )?({'|'.join(contrary)})\b", text)
    if match is None:
        return text
    claimed = f"{match[1] or ''}{words[contrary.index(match[2])]}"
    return f"{text[: match.end()]} (not {claimed}){text[match.end() :]}"


def denial(claim: Claim, text: str) -> str:
    """Returns the contrary of a text that no keys of a claim tell: with the other comparative, else as a negation."""
    match, positive = comparative(claim, text), claim.direction.removeprefix("not_")
    if positive != claim.direction and text.count(f"not {positive}") == 1:
        return text.replace(f"not {positive}", positive)
    if match is None:
        return prefixed(DENIED, text)
    at = COMPARATIVES[claim.direction].index(match[0])
    contrary = COMPARATIVES[CONTRARY[claim.direction]][at]
    return contrasted(claim, text[: match.start()] + contrary + text[match.end() :])


def comparative(claim: Claim, text: str) -> re.Match[str] | None:
    """Returns where the text of a claim tells its direction; None if the words do not, or tell a margin too.

    "more than half" of a claim about a level is such a text, and its contrary is "less than half".
    """
    words = COMPARATIVES.get(claim.direction, ())
    matches = [match for name in words for match in re.finditer(rf"\b{name}\b", text)]
    is_plain = not claim.margin and not (claim.less and claim.against)
    return matches[0] if len(matches) == 1 and is_plain else None


def prefixed(words: str, text: str) -> str:
    """Returns a text with words in front of its sentence, which may follow a heading such as `lookup: `."""
    heading, colon, rest = text.rpartition(": ")
    return f"{heading}{colon}{words}{rest}"


def shown(result: Result) -> tuple[Claim, Estimate | None]:
    """Returns a claim and its estimate as verdicts have them: the changed group minus the plain one."""
    claim, estimate = result.claim, result.estimate
    if not result.question.turned or claim.against is None:
        return claim, estimate
    claim = replace(
        claim, of={**claim.of, **claim.against}, against={**claim.of}, direction=MIRRORED[claim.direction]
    )  # fmt: skip
    return claim, None if estimate is None else estimate.negated()


def verdict(result: Result) -> str:
    """Returns what the runs say about a claim, as a sentence without a period.

    A claim that is undecided or not tested begins with "whether".
    """
    question, (claim, estimate) = result.question, shown(result)
    wording = None if claim.text else question.wording
    if estimate is None or result.decision not in (Decision.SUPPORTED, Decision.CONTRADICTED):
        text = prefixed("whether ", question.text if wording is None else wording(claim))
        number = "" if estimate is None else measured(claim, estimate, question)
        if result.decision == Decision.NOT_TESTED:
            return f"{text}, since {result.why}{f'; measured: {number}' if number else ''}"
        return f"{text}: {number}" if number else text
    supported = result.decision == Decision.SUPPORTED
    if wording is None:
        text, held = question.text if supported else denial(claim, question.text), claim
        is_told = claim.against is not None and comparative(claim, question.text) is not None
        is_claim = supported or DENIED in text
    else:
        held = strongest(claim, estimate) if supported else holds_instead(claim, estimate)
        text, is_claim = wording(held), held == claim
        text = contrasted(claim, text) if held.direction == CONTRARY.get(claim.direction) else text
        is_told = held.direction in CONTRARY and not (held.margin or held.less)
    said = "" if is_claim or "(not " in text else claimed(claim, estimate.unit)
    if not is_told or any(question.open_ends):
        return f"{text}{said}: {measured(held, estimate, question)}"
    size = estimate if estimate.value > 0 else estimate.negated()
    unit = estimate.unit.removeprefix("share ")
    return f"{text}, by {' '.join(replace(size, unit=unit).text('.3g').split())}{said}"


def measured(claim: Claim, estimate: Estimate, question: Question) -> str:
    """Returns what was measured for a claim: a difference in words, or the level of which the claim is."""
    if any(question.open_ends):
        return bounded(estimate, question.open_ends, question.bound)
    estimate = estimate.plus(claim.less)
    if claim.against is None and (claim.less or claim.direction == "within"):
        estimate = estimate if question.limits is None else estimate.within(*question.limits)
        return " ".join(estimate.text(".3g").split())
    return in_words(estimate)


def bounded(estimate: Estimate, open_ends: tuple[bool, bool], why: str) -> str:
    """Returns a difference of which one end is open, as `at least 0.25 nats lower (with noise at least 0.2)`.

    why  which side is a bound
    """
    if all(open_ends):
        return f"not known, since {why}; the bound named first is {in_words(estimate)} than the other"
    below, _ = open_ends
    at_least = below if estimate.value < 0 else not below
    end = estimate.hi if below else estimate.lo
    side, other = ("lower", "higher") if estimate.value < 0 else ("higher", "lower")
    size = " ".join(f"{abs(estimate.value):.3g} {estimate.unit}".split())
    if not at_least:
        limit = "" if end is None else f" (with noise at most {abs(end):.3g})"
        return f"at most {size} {side}{limit}, and possibly {other}; {why}"
    beyond = f" {other}" if end is not None and end * estimate.value < 0 else ""
    limit = "" if end is None else f" (with noise {'up to' if beyond else 'at least'} {abs(end):.3g}{beyond})"
    return f"at least {size} {side}{limit}; {why}"


def in_words(estimate: Estimate) -> str:
    """Returns a difference as `0.14 nats higher, between 0.04 lower and 0.32 higher`.

    A claim names both groups, so that no reader has to ask which one was subtracted.
    """
    sizes = [None if end is None else abs(end) for end in (estimate.value, estimate.lo, estimate.hi)]
    value, lo, hi = (None if size is None else f"{size:.3g}" for size in sizes)
    sides = ["higher" if (end or 0.0) > 0 else "lower" for end in (estimate.value, estimate.lo, estimate.hi)]
    sides[0] = sides[0] if estimate.value else ""
    unit = estimate.unit
    is_after = unit.startswith(("in ", "share "))  # 0.2 higher in the logarithm of the loss, but 0.2 nats higher
    text = " ".join(f"{value} {'' if is_after else unit} {sides[0]}".split())
    text += f" {unit if unit.startswith('in ') else f'in {unit}'}" if is_after else ""
    if lo is None or hi is None:
        return f"{text} (no interval: {estimate.n} seed{'s' * (estimate.n != 1)})"
    if sides[1] != sides[2]:
        return f"{text}, between {lo} {sides[1]} and {hi} {sides[2]}"
    low, high = (hi, lo) if sides[1] == "lower" else (lo, hi)
    return f"{text}, between {low} and {high} {sides[1]}"


def signed(estimate: Estimate) -> str:
    """Returns an estimate with its sign, such as `-0.14 [-0.15, -0.13] nats`."""
    sign = "+" if estimate.value > 0 else ""
    return sign + " ".join(estimate.text(".3g").split())


def advice(result: Result) -> str:
    """Returns what would decide a claim, with the command to type; "" for a decided one, or where nothing is known."""
    question, estimate = result.question, result.estimate
    if result.decision == Decision.NOT_TESTED:
        return question.advice
    if result.decision != Decision.UNDECIDED or estimate is None:
        return ""
    if any(question.open_ends):
        return "add lower rates: `design.lrs=[...]`"
    if question.samples not in SEEDS:
        return ""
    if result.spread is None or result.more_seeds is None:
        unlikely = result.spread is not None
        return "more seeds are not expected to decide it" if unlikely else "add seeds: `design.seeds=...`"
    where, name = ("", "") if result.looks > 1 else (" in a new study", "name=NEW ")
    plural = "s" * (result.more_seeds != 1)
    return f"add {result.more_seeds} seed{plural}{where}: `{name}design.seeds={estimate.n + result.more_seeds}`"


def sentence(result: Result) -> str:
    """Returns the decision of a claim: a sentence with the badge and the verdict, and one with what would decide it."""
    return sentence_of(claim_json(result))


def sentence_of(claim: Json) -> str:
    """Returns the sentences of `sentence` for an entry of `claims` in findings.json."""
    what_helps, badge = claim["advice"], claim["decision"].capitalize()
    return f"{badge}: {claim['verdict']}.{f' {what_helps[0].upper()}{what_helps[1:]}.' if what_helps else ''}"


def claim_json(result: Result) -> Json:
    """Returns the entry of `claims` in findings.json."""
    return {**result.to_json(), "verdict": verdict(result), "advice": advice(result)}


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
        return " ".join(estimate.text(".3g").split()) if self.claim.against is None else signed(estimate)


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
        if not isinstance(value, Mapping):
            raise ValueError(f"study.answer.values.{name}={value} must have the form {{of: {{KEY: VALUE}}, ...}}")
        try:
            style = str(value.get("format") or "")
            entry = {key: item for key, item in value.items() if key != "format"}
            claims = expand({**defaults, "of": {}, **entry}, levels)
        except ValueError as error:
            raise ValueError(f"study.answer.values.{name}: {error}") from None
        numbers[str(name)] = Number(claims[0], style)
    absent = [name for _, name, _, _ in Formatter().parse(str(node["text"])) if name and name not in numbers]
    if absent:
        raise ValueError(f"study.answer.text names {absent[0]}, which study.answer.values lacks: {', '.join(numbers)}")
    return str(node["text"]), numbers


def answer_text(declared: str, results: Sequence[Result], level: float) -> str:
    """Returns the answer of a study: the declared one, else its first claims; what is contradicted, and the counts.

    level  at which the intervals of all claims hold together
    """
    if not results:
        return declared or "The study states no claims; the tables have its estimates."
    by_decision = {decision: [each for each in results if each.decision == decision] for decision in ORDER}
    stated = by_decision[Decision.CONTRADICTED][:MOST_SENTENCES]
    if not declared:
        stated = [*by_decision[Decision.SUPPORTED][:MOST_SENTENCES], *stated]
        undecided = by_decision[Decision.UNDECIDED] or by_decision[Decision.NOT_TESTED]
        stated = stated or undecided[:MOST_SENTENCES]
    sentences = [*([declared] if declared else []), *map(sentence, stated)]
    return " ".join([*sentences, counts_text(results, level)])


def counts_text(results: Sequence[Result], level: float) -> str:
    """Returns how many claims are supported, contradicted, undecided and not tested, and the level of intervals."""
    counts = Counter(result.decision for result in results)
    parts = [f"{counts[decision]} {decision}" for decision in ORDER if counts[decision]]
    if not any(result.estimate is not None and result.estimate.lo is not None for result in results):
        return f"Claims: {', '.join(parts)}."
    intervals = f"simultaneous {level:.0%} intervals" if len(results) > 1 else f"a {level:.0%} interval"
    return f"Claims: {', '.join(parts)}, with {intervals}."


def claim_about(estimate: Estimate, results: Sequence[Result]) -> Result | None:
    """Returns the claim about the number that an estimate is, or about its negative; None where there is none."""
    for result in results:
        tested = tested_value(result)
        if tested is None or tested.lo is None or (tested.n, tested.unit) != (estimate.n, estimate.unit):
            continue
        if estimate.value and math.isclose(abs(tested.value), abs(estimate.value), rel_tol=1e-9):
            return result
    return None


def tested_value(result: Result) -> Estimate | None:
    """Returns the estimate of a claim without the number that the claim subtracts, cut at the ends of its scale."""
    if result.estimate is None:
        return None
    estimate, limits = result.estimate.plus(result.claim.less), result.question.limits
    return estimate if limits is None or result.claim.against is not None else estimate.within(*limits)


def with_interval_of_claim(estimate: Estimate, results: Sequence[Result]) -> Estimate:
    """Returns an estimate with the interval of the claim about its number, if there is one."""
    result = claim_about(estimate, results)
    tested = None if result is None else tested_value(result)
    if tested is None:
        return estimate
    return tested if tested.value * estimate.value > 0 else tested.negated()


def with_intervals_of_claims(
    rows: Sequence[Row], results: Sequence[Result], level: float | None, *, means: bool = False
) -> list[Json]:
    """Returns rows of a table, of which those about the numbers of claims have the intervals of these.

    Where there are such rows, every row has the confidence level of its interval; `level` is that of the others.

    means  whether the rows are means: a mean has the number of its difference from one that is 0, and is none
    """
    results = [result for result in results if not (means and result.claim.against is not None)]
    estimates = [from_row(row) if {*ESTIMATE} <= row.keys() and row["value"] is not None else None for row in rows]
    about = [None if estimate is None else claim_about(estimate, results) for estimate in estimates]
    if not any(about):
        return [dict(row) for row in rows]
    table = []
    for row, estimate, result in zip(rows, estimates, about, strict=True):
        claimed = {} if estimate is None else as_row(with_interval_of_claim(estimate, results))
        table.append({**row, **claimed, "level": level if result is None else result.level})
    return table
