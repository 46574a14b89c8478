"""Links and images of all pages, hand-written and generated, lead to something that is there."""

import posixpath
import re
from functools import cache
from pathlib import Path

import pytest
from pages import reference, results, topics
from pages.references import SUFFIX
from small_run import REPOSITORY
from yaml import safe_load

DOCS = REPOSITORY / "docs"
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?ms)^( *)```.*?^\1```$|`[^`\n]*`")
TOPIC = re.compile(r"topics/(\w+)(?:/|\.md)")  # in a link, below src or in the site
COMMENT = re.compile(r"(?s)<!--.*?-->")
FOLDERS = (".", "docs", "multirun/golden", "multirun/results", "src/kleiber_topics")
IN_REPOSITORY = sorted(
    path
    for folder in FOLDERS
    for path in (REPOSITORY.glob("*.md") if folder == "." else (REPOSITORY / folder).rglob("*.md"))
    if not path.name.endswith(SUFFIX)
)


@cache
def generated() -> dict[str, str]:
    """The pages that the site adds, by their path in it."""
    return {**results.pages(REPOSITORY), **reference.pages(REPOSITORY), **topics.pages(REPOSITORY)}


@cache
def site() -> dict[str, str]:
    """All pages of the site, by their path in it."""
    files = [path for path in sorted(DOCS.rglob("*.md")) if not path.name.endswith(SUFFIX)]
    written = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in files}
    pages = {page: topics.relink(text, page) for page, text in {**written, **generated()}.items()}
    pages["results/index.md"] += results.overview(REPOSITORY)
    pages["topics/index.md"] += topics.overview(REPOSITORY)
    return pages


def links(text: str, folder: str = "") -> list[str]:
    """The targets of the links and images that a page in a folder shows, without those to other sites."""
    return [
        target
        for target in LINK.findall(COMMENT.sub("", CODE.sub("", text)))
        if not target.startswith(("http", "mailto:")) and not is_of_deleted_topic(posixpath.join(folder, target))
    ]


def is_of_deleted_topic(target: str) -> bool:
    """Whether a link leads to a topic whose folder was deleted."""
    topic = TOPIC.search(posixpath.normpath(target))
    return topic is not None and topic[1] != "index" and not (REPOSITORY / "src/kleiber_topics" / topic[1]).is_dir()


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page."""
    found = set()
    for heading in re.findall(r"(?m)^#+ (.*)$", CODE.sub(lambda match: match[0] if "\n" not in match[0] else "", text)):
        named = re.search(r"\{#([\w-]+)\}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(named[1] if named else re.sub(r"[-\s]+", "-", plain))
    return found


@pytest.mark.slow
def test_links_of_the_site_lead_to_pages_and_their_headings():
    pages = site()
    files = {*pages, *results.figures(REPOSITORY)}
    files |= {str(path.relative_to(DOCS)) for path in DOCS.rglob("*") if path.suffix in (".png", ".svg", ".ipynb")}
    headings = {page: anchors(text) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        for target in links(text, posixpath.dirname(page)):
            path, _, fragment = target.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            if place not in files or (fragment and fragment not in headings[place]):
                broken.append((page, target))
    assert broken == []


@pytest.mark.parametrize("path", IN_REPOSITORY, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_of_files_of_the_repository_lead_to_files(path):
    shown = links(path.read_text(encoding="utf-8"), str(path.parent.relative_to(REPOSITORY)))
    targets = [path.parent / target.partition("#")[0] for target in shown]
    assert [str(target) for target in targets if not target.exists()] == []


def test_there_are_figures_in_the_pages_of_results():
    shown = {target for text in generated().values() for target in links(text) if target.endswith((".png", ".svg"))}
    assert {Path(path).name for path in results.figures(REPOSITORY)} == {Path(path).name for path in shown}


def test_every_page_is_in_the_navigation_once():
    def paths(entries: list) -> list[str]:
        values = [value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])]
        return [path for value in values for path in (paths(value) if isinstance(value, list) else [value])]

    config = safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    named = paths(
        [*config["nav"], *results.navigation(REPOSITORY), *reference.navigation(), *topics.navigation(REPOSITORY)]
    )
    notebooks = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.ipynb")}
    assert len(named) == len(set(named)) and {*named} == {*site()} | notebooks
