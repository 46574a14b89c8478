"""The audit of a text: its numbers are those of the associations, and a list that cannot be read is refused."""

import pytest
from html_elements import adds_no_element, elements

from kleiber_topics.bias.audit import FDR, BiasAudit

TEXTS = ["He fixed the engine and he sang.", "She wrote code while she sang."] * 20


@pytest.fixture
def audit() -> BiasAudit:
    audit = BiasAudit(window=3)
    for text in TEXTS:
        audit.add(text)
    return audit


def test_the_summary_has_both_groups_and_every_association(audit):
    bias = audit.summary()["bias"]
    assert bias["groups"] == {"male words": 40, "female words": 40} and bias["window"] == 3
    terms = {row["term"]: row["log_odds"] for row in bias["words"]}
    assert terms["engine"] > 0 > terms["code"] and terms["engine"] > terms["sang"] > terms["code"]


def test_the_terminal_shows_each_side_and_how_many_words_are_decided(audit):
    first, *others = audit.lines()
    decided = sum(row["q"] <= FDR for row in audit.summary()["bias"]["words"])
    assert f"{decided} of" in first and decided > 0
    headings = [place for place, line in enumerate(others) if line.startswith("near")]
    sides = [[line.split()[0] for line in part] for part in (others[: headings[1]], others[headings[1] :])]
    assert "engine" in sides[0] and "code" in sides[1] and "code" not in sides[0]


def test_the_page_has_a_row_for_every_word(audit):
    rows = [name for name, _ in elements(audit.page("t.txt", "t.txt: 40 documents")) if name == "tr"]
    assert len(rows) >= len(audit.summary()["bias"]["words"])


def test_only_the_words_of_a_list_are_reported(tmp_path):
    listed = tmp_path / "words.txt"
    listed.write_text("code\n")
    audit = BiasAudit("gender", str(listed))
    for text in TEXTS:
        audit.add(text)
    assert [row.term for row in audit.rows()] == ["code"]
    with pytest.raises(ValueError, match="--words=nothing"):
        BiasAudit("nothing")


def audit_page(text: str) -> str:
    return BiasAudit().page(text, text)


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(audit_page)
