"""The pages of the topics: the README of each, with its links as the site has them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from pages import links
from pages.tables import table

README = re.compile(r"\]\((?:\.\./)+src/kleiber_topics/(\w+)/README\.md")
SIBLING = re.compile(r"\]\(\.\./(\w+)/README\.md")


def readmes(repository: Path) -> dict[str, Path]:
    """Returns the README of each topic by its name."""
    files = sorted((repository / "src/kleiber_topics").glob("*/README.md"))
    return {file.parent.name: file for file in files}


def pages(repository: Path) -> dict[str, str]:
    """Returns the Markdown of the pages by their path in the site."""
    texts = {name: file.read_text(encoding="utf-8") for name, file in readmes(repository).items()}
    linked = {
        f"topics/{name}.md": links.relink(text, f"topics/{name}.md", f"src/kleiber_topics/{name}")
        for name, text in texts.items()
    }
    return {page: SIBLING.sub(r"](\1.md", text) for page, text in linked.items()}


def deleted(repository: Path) -> list[str]:
    """Returns the topics that tests or links name and that are not in this checkout."""
    texts = [file.read_text(encoding="utf-8") for file in (repository / "docs").rglob("*.md")]
    named = {folder.name for folder in (repository / "tests/topics").glob("[a-z]*") if folder.is_dir()}
    return sorted(named.union(*map(README.findall, texts)) - readmes(repository).keys())


def navigation(repository: Path) -> list[dict[str, str]]:
    """Returns the entries of the navigation below the topics."""
    return [{title(file): f"topics/{name}.md"} for name, file in readmes(repository).items()]


def title(file: Path) -> str:
    """Returns the first words of the heading of a page, up to a colon."""
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(":")[0]


def overview(repository: Path) -> str:
    """Returns a table of all topics: their pages, and what each is about."""
    rows = []
    for name, file in readmes(repository).items():
        heading = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(":")[2].strip()
        rows.append([f"[{title(file)}]({name}.md)", heading])
    return table(["topic", "what it is about"], rows)


def relink(markdown: str, page: str) -> str:
    """Returns a page of the site with links to pages of the site in place of those to files of the repository.

    page  its path in the site
    """
    to_topics = posixpath.relpath("topics", posixpath.dirname(page) or ".")
    return links.relink(README.sub(rf"]({to_topics}/\1.md", markdown), page)
