"""Every number of the README, of a page of results and of a discussion is that of a record, or says why not."""

import re

import pytest
from pages.references import REFERENCE, REPOSITORY, SUFFIX, templates
from pages.results import studies
from recorded_numbers import quoted, without_code
from yaml import safe_load

STUDIES = {study.name: study for study in studies(REPOSITORY)}
TEMPLATES = {str(path.relative_to(REPOSITORY)): path for path in templates()}
PAGES = [path for path in (REPOSITORY / "docs/results").glob("*.md") if path.name != "index.md"]
PAGES.append(REPOSITORY / "docs/speed.md")
NO_RESULT = {"1.5", "0.1", "2.0", "3.11"}  # of the README: the budget of `make train`, a rate of dropout, versions
WITHOUT_ZERO = re.compile(r"(?<![\w.)])[-+]?\.\d")


def parts(text: str) -> tuple[dict, str]:
    """The front matter of a page, with its question and answer as text, and the text itself."""
    if not text.startswith("---\n"):
        return {}, text
    _, front, body = text.split("---\n", 2)
    fields = safe_load(front) or {}
    return fields, f"{fields.get('question', '')}\n{fields.get('answer', '')}\n{body}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_number_is_a_reference_or_says_from_where(name):
    front, text = parts(TEMPLATES[name].read_text(encoding="utf-8"))
    literal = quoted(REFERENCE.sub("", text))
    excused = NO_RESULT if name == f"README{SUFFIX}" else {*(front.get("elsewhere") or {})}
    assert literal - excused == set(), "a number that no record has says in `elsewhere` where it comes from"
    assert excused - literal - NO_RESULT == set(), "only numbers that are quoted are excused"


def test_every_recorded_study_has_a_discussion_with_a_template():
    folders = [path.parent.name for path in (REPOSITORY / "multirun/results").glob("*/findings.json")]
    assert STUDIES.keys() == {"golden", *folders}
    assert all((study.folder / f"discussion{SUFFIX}").is_file() for study in STUDIES.values())


@pytest.mark.parametrize("path", [path for path in PAGES if not path.name.endswith(SUFFIX)], ids=lambda path: path.stem)
def test_a_page_of_results_has_a_template(path):
    assert path.with_name(path.stem + SUFFIX).is_file()


def test_the_readme_counts_the_recorded_studies():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"{len(STUDIES)} recorded studies" in " ".join(text.split())


@pytest.mark.parametrize("folder", [".", "docs", "multirun", "src/kleiber_topics"])
def test_numbers_outside_of_code_have_their_leading_zero(folder):
    found = (REPOSITORY / folder).glob("*.md") if folder == "." else (REPOSITORY / folder).rglob("*.md")
    texts = {str(path.relative_to(REPOSITORY)): REFERENCE.sub("", path.read_text(encoding="utf-8")) for path in found}
    bare = {path: WITHOUT_ZERO.findall(without_code(text)) for path, text in texts.items()}
    assert {path: numbers for path, numbers in bare.items() if numbers} == {}
