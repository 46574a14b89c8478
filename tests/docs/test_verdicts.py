"""What recorded reports and their pages say of claims: nothing that is contradicted, and one interval for a number."""

import re

import pytest
from pages.results import page, studies
from small_run import REPOSITORY

STUDIES = {study.name: study for study in studies(REPOSITORY)}
DENIED = r"(?:it does not hold that|whether|of the claim that) "  # what may stand in front of a text that is not so


def states(text, sentence):
    """Whether a text has a sentence without a word that takes it back."""
    plain = re.sub(DENIED + re.escape(sentence), "", text)
    return sentence in plain


def statements(findings):
    """The texts in which a report speaks of its claims."""
    claims = [f"{claim['decision']} {claim['verdict']} {claim['advice']}" for claim in findings["claims"]]
    return [findings["answer"], findings["question"], *claims, *(caveat["text"] for caveat in findings["caveats"])]


def numbers(node):
    """The estimates with an interval in a node of findings.json."""
    if isinstance(node, dict) and {"value", "lo", "hi", "n", "unit"} <= node.keys() and node["lo"] is not None:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from numbers(child)


def test_a_sentence_that_is_taken_back_is_not_stated():
    assert states("Contradicted: a is lower than b.", "a is lower than b")
    assert not states("it does not hold that a is lower than b", "a is lower than b")


@pytest.mark.parametrize("name", STUDIES)
def test_no_contradicted_claim_is_stated_as_if_it_were_true(name):
    findings = STUDIES[name].findings
    refuted = [claim for claim in findings["claims"] if claim["decision"] == "contradicted"]
    texts = [*statements(findings), page(STUDIES[name], REPOSITORY)]
    assert [claim["text"] for claim in refuted if any(states(text, claim["text"]) for text in texts)] == []
    for claim in refuted if not findings.get("archived") else ():  # whose directions were not recorded
        words = {"lower": "higher|not|more|worse", "higher": "lower|not|less|worse"}
        expected = words.get(claim["direction"], "higher|lower|not|grows")
        assert re.search(rf"\b({expected}|grows)\b", claim["verdict"]), claim["verdict"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_claim_that_is_not_decided_says_so_and_what_would_decide_it(name):
    findings = STUDIES[name].findings
    for claim in findings["claims"]:
        decided = claim["decision"] in ("supported", "contradicted")
        assert decided != bool(re.search(r"\bwhether\b", claim["verdict"])), claim["verdict"]
        assert not (decided and claim["advice"])


@pytest.mark.parametrize("name", STUDIES)
def test_a_number_has_one_interval_on_the_page_of_a_study(name):
    findings = STUDIES[name].findings
    tested = {
        (round(abs(claim["value"]), 12), claim["n"], claim["unit"]): claim for claim in numbers(findings["claims"])
    }
    for row in numbers([findings["tables"], findings["estimates"]]):
        claim = tested.get((round(abs(row["value"]), 12), row["n"], row["unit"]))
        if claim is not None and row["value"]:
            ends = (row["lo"], row["hi"]) if row["value"] * claim["value"] > 0 else (-row["hi"], -row["lo"])
            assert ends == pytest.approx((claim["lo"], claim["hi"]))
            assert row.get("level", claim["level"]) == pytest.approx(claim["level"])


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_names_the_level_of_its_intervals(name):
    findings = STUDIES[name].findings
    if any(numbers(findings["tables"])) and findings["level"] is not None:
        text = page(STUDIES[name], REPOSITORY)
        assert f"confidence of {findings['level']:.0%} each" in text
        assert not findings["claims"] or f"{findings['level']:.0%} for all claims together" in text
