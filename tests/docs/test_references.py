"""Numbers of pages come from records by address: a page is what its template makes of the records."""

import json

import pytest
from pages.claims import register
from pages.references import REPOSITORY, fill, page_of, templates, written


def record(folder, content):
    (folder / "findings.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("template", templates(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_page_is_what_its_template_makes_of_the_records(template):
    assert page_of(template).read_text(encoding="utf-8") == fill(template)


def test_a_place_names_entries_by_their_keys(tmp_path):
    entries = [{"of": {"arm": "a"}, "equal": None, "lo": -0.0126}, {"of": {"arm": "b"}, "equal": "flops", "lo": 0.5}]
    home = record(tmp_path, {"claims": entries, "answer": "from 0.25 to 1.75 nats", "seconds": 5400})
    assert written("findings: claims[of.arm=a,equal=null].lo | 3", home) == "-0.013"
    assert written("findings: claims[of.arm=a].lo | abs | percent | 1", home) == "1.3"
    assert written("findings: claims.1.lo | 0", home) == "1", "halves are rounded away from 0"
    assert written("findings: answer | number 2 | 1", home) == "1.8"
    assert written("findings: seconds | hours | 1", home) == "1.5"


@pytest.mark.parametrize(
    "reference",
    [
        "findings: claims[of.arm=c].lo | 3",
        "findings: claims[equal=same].lo | 3",
        "findings: claims.9.lo | 3",
        "findings: answer | 3",
        "other: claims | 3",
        "findings: claims.0.lo | squared | 3",
    ],
)
def test_a_reference_that_leads_nowhere_is_named(tmp_path, reference):
    home = record(tmp_path, {"claims": [{"of": {"arm": "a"}, "equal": "same", "lo": 1.0}] * 2, "answer": "none"})
    (home / "page.template.md").write_text("A number: {{" + reference + "}}")
    with pytest.raises(ValueError) as caught:
        fill(home / "page.template.md")
    assert reference in str(caught.value) and "page.template.md" in str(caught.value)


@pytest.mark.parametrize("claim", register(), ids=lambda claim: claim.claim[:40])
def test_the_register_of_claims_says_what_the_records_decide(claim):
    for part in claim.parts:
        assert part.decided() == part.decision, part.where
        assert part.not_tested or part.places, "a part is decided by records, or not tested"
