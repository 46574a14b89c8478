"""Every number of the README, of the pages of results and of the discussion of a study is recorded, or says why not."""

import json

import pytest
from pages.references import page_of, templates
from pages.results import Study, studies
from recorded_numbers import quoted, read, unrecorded, unrecorded_intervals
from small_run import REPOSITORY
from yaml import safe_load

from kleiber.config.compose import config_files

MADE = {
    "index.md",
    *(name for path in templates() for name in (path.name.removesuffix(".template.md"), page_of(path).name)),
}
STUDIES = {study.name: study for study in studies(REPOSITORY)}
PAGES = [
    path for path in (REPOSITORY / "docs/results").glob("*.md") if path.name.removesuffix(".template.md") not in MADE
]
PAGES.append(REPOSITORY / "docs/speed.md")
IN_README = ("golden", "six_questions", "forgetting")
NO_RESULT = {"1.5", ".1", "3.11"}  # of the README: the budget of `make train`, a rate of dropout, a version


def records(study: Study) -> list[object]:
    """What a discussion may quote: its own records, those of the studies that it names, and its config."""
    config = safe_load(config_files()[f"study/{study.kind}"].read_text())
    return [config, *(record for name in (study.name, *study.records) for record in read(STUDIES[name].folder))]


def text_of(study: Study) -> str:
    return f"{study.answer}\n{study.discussion}"


@pytest.mark.parametrize("name", STUDIES)
def test_every_number_comes_from_a_record_or_says_from_where(name):
    study = STUDIES[name]
    missing = unrecorded(text_of(study), records(study))
    assert [text for text in missing if text not in study.elsewhere] == []


@pytest.mark.parametrize("name", STUDIES)
def test_every_interval_is_that_of_one_row_or_verdict(name):
    study = STUDIES[name]
    missing = unrecorded_intervals(text_of(study), records(study))
    assert [interval for interval in missing if not {*interval} & study.elsewhere.keys()] == []


@pytest.mark.parametrize("name", STUDIES)
def test_only_numbers_that_are_quoted_are_excused(name):
    assert STUDIES[name].elsewhere.keys() - quoted(text_of(STUDIES[name])) == set()


def test_every_recorded_study_has_a_discussion():
    folders = [path.parent.name for path in (REPOSITORY / "multirun/results").glob("*/findings.json")]
    assert STUDIES.keys() == {"golden", *folders}


def test_the_numbers_of_the_readme_are_those_of_the_records():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    recorded = [record for name in IN_README for record in read(STUDIES[name].folder)]
    assert len(quoted(text)) > 10 and [number for number in unrecorded(text, recorded) if number not in NO_RESULT] == []
    assert unrecorded_intervals(text, recorded) == []
    assert f"{len(STUDIES)} recorded studies" in " ".join(text.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_of_results_names_its_records_or_why_there_are_none(path):
    _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
    names = safe_load(front)
    recorded = [json.loads((REPOSITORY / file).read_text(encoding="utf-8")) for file in names["records"]]
    assert recorded or names["unrecorded"]
    if recorded:
        elsewhere = names["elsewhere"]
        assert [number for number in unrecorded(text, recorded) if number not in elsewhere] == []
        missing = unrecorded_intervals(text, recorded)
        assert [interval for interval in missing if not {*interval} & elsewhere.keys()] == []
        assert elsewhere.keys() - quoted(text) == set()
