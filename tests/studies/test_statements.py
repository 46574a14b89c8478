"""Claims as sentences: groups by what they differ in, what holds in place of a contradicted claim, and counts."""

import pytest

from kleiber.studies.claims import Claim, Question, decide_together
from kleiber.studies.statements import answer_text, contrary, decided, read_answer, statement


def label(key, value):
    return f"{key} {value}"


ARMS = {"of": {"arm": "b"}, "against": {"arm": "a"}}


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        (ARMS, "loss is lower with arm b than with arm a"),
        ({**ARMS, "direction": "not_higher"}, "loss is not higher with arm b than with arm a"),
        ({**ARMS, "margin": 0.1}, "loss is lower by more than 0.1 nats with arm b than with arm a"),
        ({**ARMS, "less": 0.5}, "loss is lower with arm b than with arm a, by more than 0.5"),
        ({**ARMS, "equal": "flops"}, "loss is lower with arm b than with arm a, at equal training FLOPs"),
        ({**ARMS, "direction": "within", "margin": 0.1}, "loss differs by less than 0.1 nats between arm b and arm a"),
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


@pytest.mark.parametrize(
    ("direction", "margin", "opposite"),
    [("lower", 0, "higher"), ("higher", 0, "lower"), ("not_higher", 0, "higher"), ("lower", 0.1, "not_lower"),
     ("not_higher", 0.1, "higher"), ("within", 0.1, None)],
)  # fmt: skip
def test_what_holds_in_place_of_a_contradicted_claim(direction, margin, opposite):
    claim = contrary(Claim(**ARMS, direction=direction, margin=margin))
    assert (claim and claim.direction) == opposite
    assert contrary(Claim(**ARMS, text="stated")) is None


def result(values, **claim):
    claim = Claim(**{**ARMS, **claim})
    question = Question(claim=claim, text=statement(claim, "loss", "nats", label), values=values, unit="nats")
    return decide_together([question], 0.9)[0]


def test_a_contradicted_claim_is_answered_by_what_holds():
    sentences = {
        name: decided(result(values), "loss", "nats", label)
        for name, values in (("lower", [-0.2, -0.21]), ("higher", [0.2, 0.21]), ("alone", [0.1]))
    }
    assert sentences["lower"].startswith("Supported: loss is lower with arm b than with arm a: -0.205 [")
    assert sentences["higher"].startswith("Contradicted: loss is higher with arm b than with arm a: +0.205 [")
    assert sentences["alone"].startswith("Not tested: ") and "since" in sentences["alone"]


def test_an_answer_begins_with_supported_claims_and_ends_with_counts():
    results = [result(values) for values in ([0.2, 0.21], [0.0, 1.0], [-0.2, -0.21], [-0.3, -0.31], [0.1])]
    text = answer_text("", results, lambda each: f"{each.decision} {each.estimate.value:.3g}.")
    assert text == "supported -0.205. supported -0.305. contradicted 0.205. Claims: 2 supported, 1 contradicted, " \
        "1 undecided, 1 not tested."  # fmt: skip
    assert answer_text("So it is.", results[:1], str) == "So it is. Claims: 1 contradicted."
    assert answer_text("", results[:1], lambda _: "One.") == "One." and answer_text("", [], str)


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
