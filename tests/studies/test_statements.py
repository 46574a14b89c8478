"""Claims as sentences: groups by what they differ in, verdicts in the direction of the result, and counts."""

import pytest

from kleiber.studies.claims import Claim, Question, decide_together
from kleiber.studies.decision import as_row
from kleiber.studies.statements import (
    advice,
    answer_text,
    denial,
    read_answer,
    sentence,
    statement,
    verdict,
    with_intervals_of_claims,
)


def label(key, value):
    return f"{key} {value}"


ARMS = {"of": {"arm": "b"}, "against": {"arm": "a"}}


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        (ARMS, "loss is lower with arm b than with arm a"),
        ({**ARMS, "direction": "not_higher"}, "loss is no higher with arm b than with arm a"),
        ({**ARMS, "margin": 0.1}, "loss is lower by more than 0.1 nats with arm b than with arm a"),
        ({**ARMS, "less": 0.5}, "loss is lower with arm b than with arm a, by more than 0.5"),
        ({**ARMS, "equal": "flops"}, "loss is lower with arm b than with arm a, at equal training FLOPs"),
        ({**ARMS, "direction": "within", "margin": 0.1},
         "loss with arm b differs by at most 0.1 nats from that with arm a"),
        ({"of": {"arm": "b"}, "less": 2.0}, "loss of arm b is lower than 2 nats"),
        ({"of": {"arm": "b", "size": 1}, "against": {"arm": "a"}},
         "loss is lower with arm b than with arm a, for size 1"),
        ({"of": {"arm": "b", "size": 1}, "against": {"arm": "a"}, "than": {"size": 2}},
         "the difference in loss between arm b and arm a is lower with size 1 than with size 2"),
        ({"of": {"arm": "b"}, "text": "{arm} is good"}, "arm b is good"),
        ({"of": {}}, "loss of all runs is lower than 0 nats"),
    ],
)  # fmt: skip
def test_a_claim_is_a_sentence(claim, text):
    assert statement(Claim(**claim), "loss", "nats", label) == text


def result(values, turned=False, looks=1, limits=None, unit="nats", open_ends=(False, False), **claim):
    def wording(stated):
        return statement(stated, "loss", "nats", label)

    claim = Claim(**{**ARMS, **claim})
    fields = {"claim": claim, "text": wording(claim), "wording": wording, "turned": turned, "unit": unit}
    fields |= {"limits": limits, "open_ends": open_ends}
    return decide_together([Question(**fields, values=values)], 0.9, looks)[0]


@pytest.mark.parametrize(
    ("values", "claim", "decision", "text"),
    [
        ([-0.2, -0.21], {}, "supported", "loss is lower with arm b than with arm a, by 0.205 ["),
        ([0.2, 0.21], {}, "contradicted", "loss is higher (not lower) with arm b than with arm a, by 0.205 ["),
        ([0.2, 0.21], {"direction": "not_higher"}, "contradicted",
         "loss is higher with arm b than with arm a, by 0.205 [0.173, 0.237] nats (claimed: not higher)"),
        ([-0.2, -0.21], {"direction": "not_higher"}, "supported",
         "loss is lower with arm b than with arm a, by 0.205 [0.173, 0.237] nats (claimed: not higher)"),
        ([-0.2, -0.21], {"margin": 0.1}, "supported",
         "loss is lower with arm b than with arm a, by 0.205 [0.173, 0.237] nats (claimed: more than 0.1 nats lower)"),
        ([0.01, -0.01], {"margin": 0.2}, "contradicted",
         "loss is at most 0.2 nats lower with arm b than with arm a (claimed: more than 0.2 nats lower): 0 nats, "),
        ([0.5, 0.51], {"margin": 0.2}, "contradicted",
         "loss is higher (not lower) with arm b than with arm a, by 0.505 ["),
        ([0.5, 0.51], {"direction": "not_higher", "margin": 0.2}, "contradicted",
         "loss is higher with arm b than with arm a, by 0.505 [0.473, 0.537] nats (claimed: at most 0.2 nats higher)"),
        ([-0.5, -0.51], {"direction": "within", "margin": 0.2}, "contradicted",
         "loss is lower with arm b than with arm a, by 0.505 [0.473, 0.537] nats (claimed: a difference of at most "),
        ([0.001, 0.0], {"direction": "within", "margin": 0.2}, "supported",
         "loss with arm b differs by at most 0.2 nats"),
        ([0.1, -0.2], {}, "undecided",
         "whether loss is lower with arm b than with arm a: 0.05 nats lower, between 0.997 lower and 0.897 higher"),
        ([0.3, 0.2], {"margin": 0.1, "direction": "higher"}, "undecided",
         "whether loss is higher by more than 0.1 nats with arm b than with arm a: 0.25 nats higher, between 0.0657 "),
        ([0.6, 0.3], {"less": 0.5, "direction": "higher"}, "undecided",
         "whether loss is higher with arm b than with arm a, by more than 0.5: 0.95 nats higher, "),
        ([0.1, -0.2], {"direction": "within", "margin": 0.2}, "undecided",
         "whether loss with arm b differs by at most 0.2 nats from that with arm a: 0.05 nats lower, "),
        ([0.1], {}, "not tested", "whether loss is lower with arm b than with arm a, since "),
    ],
)  # fmt: skip
def test_a_verdict_has_the_direction_of_the_result(values, claim, decision, text):
    found = result(values, **claim)
    assert found.decision == decision and verdict(found).startswith(text)
    assert sentence(found).startswith(f"{decision.capitalize()}: ") and sentence(found).endswith(".")


def test_a_claim_that_was_not_tested_says_why_before_what_was_measured():
    text = verdict(result([0.1]))
    assert text.index(", since ") < text.index("; measured: 0.1 nats higher")


def test_the_changed_group_is_compared_with_the_plain_one():
    found = result([-0.2, -0.21], turned=True)
    assert verdict(found).startswith("loss is higher with arm a than with arm b, by 0.205 [")
    assert found.to_json()["value"] == pytest.approx(-0.205), "the numbers of the claim stay as it states them"


@pytest.mark.parametrize(
    ("text", "claim", "contrary"),
    [
        ("the loss is lower with x", {}, "the loss is higher (not lower) with x"),
        ("arm: x ranks first more often", {"direction": "higher"}, "arm: x ranks first less (not more) often"),
        ("x wins more than half", {"direction": "higher", "less": 0.5, "against": None},
         "x wins less (not more) than half"),
        ("x is lower or lower still", {}, "it does not hold that x is lower or lower still"),
        ("at b: x is lower", {"margin": 0.1}, "at b: it does not hold that x is lower"),
        ("x is not higher than y", {"direction": "not_higher", "margin": 0.1}, "x is higher than y"),
        ("x moves by less than half", {"direction": "within", "margin": 0.5},
         "it does not hold that x moves by less than half"),
    ],
)  # fmt: skip
def test_a_text_that_is_contradicted_is_turned_or_negated(text, claim, contrary):
    claim = Claim(**{**ARMS, **claim}, text=text)
    assert denial(claim, text) == contrary
    values = [5.0, 5.01] if claim.direction != "higher" else [-0.5, -0.51]
    (found,) = decide_together([Question(claim=claim, text=text, values=values, unit="nats")], 0.9)
    is_level = claim.against is None or claim.direction.startswith("not_") or "it does not hold" in contrary
    joint = ": " if is_level else ", by "
    joint = f"{' (claimed: at most 0.1 nats higher)' * (claim.direction == 'not_higher')}{joint}"
    assert found.decision == "contradicted" and verdict(found).startswith(f"{contrary}{joint}")


def test_a_verdict_shows_the_level_that_its_claim_compares_with_a_number():
    found = result([0.9, 0.91], against=None, less=0.5, direction="higher")
    assert verdict(found).startswith("loss of arm b is higher than 0.5 nats: 1.41 [") and verdict(found).endswith(
        "] nats"
    )


def test_the_interval_of_a_level_ends_at_the_ends_of_its_scale():
    fields = {"against": None, "less": 0.5, "direction": "higher", "limits": (0.0, 1.0)}
    assert verdict(result([0.4, 0.45], **fields)).endswith(": 0.925 [0.767, 1] nats")


@pytest.mark.parametrize(
    ("values", "open_ends", "text"),
    [
        (
            [-0.2, -0.21],
            (True, False),
            ": at least 0.205 nats lower (with noise at least 0.173); ",
        ),
        (
            [-0.2, -0.21],
            (False, True),
            ": at most 0.205 nats lower (with noise at most 0.237), and possibly higher; ",
        ),
        (
            [0.2, 0.21],
            (False, True),
            ": at least 0.205 nats higher (with noise at least 0.173); ",
        ),
        (
            [0.2, -0.1],
            (True, False),
            ": at most 0.05 nats higher (with noise at most 0.997), and possibly lower; ",
        ),
        ([0.2, 0.21], (True, True), ": not known, since "),
    ],
)
def test_a_bound_is_told_as_at_most_or_at_least_whatever_was_decided(values, open_ends, text):
    assert text in verdict(result(values, open_ends=open_ends))


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("in the logarithm of the loss", "0.05 lower in the logarithm of the loss, between"),
        ("share of texts", "0.05 lower in share of texts, between"),
    ],
)
def test_a_unit_that_is_a_phrase_follows_the_direction(unit, text):
    assert text in verdict(result([0.1, -0.2], unit=unit))


def test_an_undecided_claim_names_the_command_that_would_decide_it():
    values = [-0.1, -0.2, 0.05]
    once, again = result(values), result(values, looks=2)
    seeds = f"name=NEW design.seeds={3 + once.more_seeds}"
    assert once.decision == "undecided" and f"in a new study: `{seeds}`" in sentence(once)
    assert sentence(once).endswith(f". {advice(once)[0].upper()}{advice(once)[1:]}.")
    assert advice(again).endswith(f": `design.seeds={3 + again.more_seeds}`") and "new study" not in advice(again)
    assert advice(result([-0.2, -0.21])) == advice(result([0.1])) == ""


def test_an_answer_states_what_is_supported_and_contradicted_and_ends_with_counts():
    results = [result(values) for values in ([0.2, 0.21], [0.0, 1.0], [-0.2, -0.21], [-0.3, -0.31], [0.1])]
    text = answer_text("", results, 0.9)
    order = [text.index(part) for part in ("by 0.205", "by 0.305", "Contradicted: loss is higher")]
    assert order == sorted(order) and "Undecided" not in text
    counts = "Claims: 2 supported, 1 contradicted, 1 undecided, 1 not tested, with simultaneous 90% intervals."
    assert text.endswith(counts)
    told = answer_text("So it is.", results, 0.9)
    assert told.startswith("So it is. Contradicted: ") and "Supported" not in told
    assert answer_text("", results[1:2], 0.9).startswith("Undecided: whether ") and answer_text("", [], 0.9)


def test_a_number_has_the_interval_of_its_claim_in_every_table():
    found = result([0.2, 0.22])
    value = found.estimate.value
    same = {"arm": "b", "value": value, "lo": 0.1, "hi": 0.3, "n": 2, "unit": "nats"}
    mirrored, other = {**same, "value": -value}, {**same, "value": 0.5}
    rows = with_intervals_of_claims([same, mirrored, other, {**same, "n": 9}], [found], 0.8)
    assert rows[0] == {"arm": "b", **as_row(found.estimate), "level": found.level}
    assert (rows[1]["lo"], rows[1]["hi"]) == (-found.estimate.hi, -found.estimate.lo)
    assert rows[2:] == [{**other, "level": 0.8}, {**same, "n": 9, "level": 0.8}]
    assert with_intervals_of_claims([other], [found], 0.8) == [other]
    assert with_intervals_of_claims([same], [found], 0.8, means=True) == [same]


def test_the_numbers_of_an_answer_are_checked():
    levels, first = {"arm": ["a"]}, {"measure": "loss"}
    text, numbers = read_answer({"text": "{x}", "values": {"x": {"of": {"arm": "a"}}}}, first, levels)
    assert text == "{x}" and numbers["x"].claim.measure == "loss" and read_answer(None, first, levels) == ("", {})
    for node, message in (
        ({"text": "{y}", "values": {"x": {}}}, "names y"),
        ({"text": "{x}", "values": {"x": {"off": {}}}}, r"study\.answer\.values\.x: off"),
        ({"txt": "x"}, r"study\.answer="),
    ):
        with pytest.raises(ValueError, match=message):
            read_answer(node, first, levels)
