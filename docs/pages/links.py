"""Links of the pages, which lead to files of the repository, as links between pages of the site.

Read on a code host a link leads to a discussion, a config or a module; in the site to the page that is made of it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

LINK = re.compile(r"(?<=\]\()(?:\.\./)*[\w./-]+(?=[)#])")
WHOLE_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^][]*)\]\((?P<target>(?!https?:)[\w./#-]+)\)")
PAGES = {  # of generated pages, by the file or folder from which most of them comes
    "conf/train.yaml": "reference/keys.md",
    "src/kleiber/launch/cli.py": "reference/commands.md",
    "src/kleiber/__init__.py": "reference/offered.md",
    "src/kleiber_topics": "topics/index.md",
}
STUDY = re.compile(r"multirun/(?:results/)?(\w+)/(?:discussion\.md|figures/(\w+)\.svg)")
CHOICE = re.compile(r"conf/(\w+)(?:/([\w/]+)\.yaml)?")


def site_path(file: str) -> str | None:
    """Returns the page, with its anchor, or the figure of the site for a file of the repository; None without one."""
    if file in PAGES:
        return PAGES[file]
    if study := STUDY.fullmatch(file):
        return f"results/{study[1]}/" + (f"figures/{study[2]}.png" if study[2] else "index.md")
    if choice := CHOICE.fullmatch(file):
        anchor = f"#{choice[2].replace('/', '-')}" if choice[2] else ""
        return f"reference/{choice[1]}.md{anchor}"
    return file.removeprefix("docs/") if file.startswith("docs/") else None


def without_absent(markdown: str, is_there: Callable[[str], bool]) -> str:
    """Returns a page in which text stands for the links that lead nowhere, and nothing for such pictures.

    is_there  whether the target of a link is in the site
    """

    def kept(link: re.Match[str]) -> str:
        return link[0] if is_there(link["target"]) else "" if link["picture"] else link["text"]

    return WHOLE_LINK.sub(kept, markdown)


def relink(markdown: str, page: str, home: str = "") -> str:
    """Returns a page of the site whose links lead to pages of the site.

    page  its path in the site
    home  folder of its file in the repository; "" for that in docs/
    """
    folder = posixpath.dirname(page)
    source = home or posixpath.join("docs", folder)

    def target(link: re.Match[str]) -> str:
        """The link to the page of a file, or the link as it is."""
        found = site_path(posixpath.normpath(posixpath.join(source, link[0])))
        return link[0] if found is None else posixpath.relpath(found, folder or ".")

    return LINK.sub(target, markdown)
