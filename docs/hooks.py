"""What mkdocs calls while it builds the site: adds the pages that are generated."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pages import figures, narrow, reference, results, topics

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
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Labels the cells of tables for narrow windows."""
    return narrow.with_labels(html)
