"""What mkdocs calls while it builds the site: adds the pages that are generated."""

from __future__ import annotations

import posixpath
import re
from functools import partial
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pages import figures, links, narrow, reference, results, topics

REPOSITORY = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the sections of the navigation whose first page is the index of their folder."""
    sections = {
        "results/index.md": results.navigation(REPOSITORY),
        "reference/index.md": reference.navigation(),
        "topics/index.md": topics.navigation(REPOSITORY),
    }
    for entry in config.nav or ():
        for pages in entry.values():
            if isinstance(pages, list):
                pages += sections.get(pages[0], [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the figures of the recorded studies to the files of the site."""
    if absent := topics.deleted(REPOSITORY):
        names = ", ".join(study.name for study in results.left_out(REPOSITORY)) or "none"
        print(f"without the topics that are not here ({', '.join(absent)}) and their recorded studies ({names})")
    made = {**results.pages(REPOSITORY), **reference.pages(REPOSITORY), **topics.pages(REPOSITORY)}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    figures.draw_all(results.drawn_from(REPOSITORY))
    for path, figure in results.figures(REPOSITORY).items():
        files.append(File.generated(config, path, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the overviews of recorded studies and of topics into their places, and links to the pages of topics.

    A pipe in code needs a backslash in a table on other sites; here the backslash would be shown.
    """
    markdown = markdown.replace("<!-- studies -->", results.overview(REPOSITORY))
    markdown = markdown.replace("<!-- topics -->", topics.overview(REPOSITORY))
    markdown = topics.relink(markdown, page.file.src_path)
    if topics.deleted(REPOSITORY):
        markdown = links.without_absent(markdown, partial(is_there, page.file.src_path, files))
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)


def is_there(page: str, files: Files, target: str) -> bool:
    """Whether a link of a page leads into the site of a checkout without some of the topics."""
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    file = files.get_file_from_path(path)
    has_choices = file is not None and path.startswith("reference/") and bool(anchor)
    return file is not None and (not has_choices or f"{{#{anchor}}}" in file.content_string)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Labels the cells of tables for narrow windows."""
    return narrow.with_labels(html)
