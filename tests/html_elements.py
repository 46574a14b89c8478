"""Reads the elements of an HTML page, to test that hostile text adds none."""

from collections.abc import Callable
from html.parser import HTMLParser

HOSTILE = "<!--<script></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&\u2028{{ 7*7 }}"

Element = tuple[str, tuple[tuple[str, str | None], ...]]


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.elements and self.elements[-1][0] == "script" and ("<!--" in data or "<script" in data.lower()):
            self.elements.append(("script that a browser does not end", ()))  # html.parser does


def elements(page: str) -> list[Element]:
    """Returns tag and attributes of every element of a page in order; a comment has the tag `comment`."""
    return _collect(page).elements


def shown_text(page: str) -> str:
    """Returns the text of a page as a browser reads it, scripts included."""
    return "".join(_collect(page).texts)


def _collect(page: str) -> _Collector:
    collector = _Collector()
    collector.feed(page)
    collector.close()
    return collector


def adds_no_element(page: Callable[[str], str]) -> bool:
    """Whether a page with a hostile text has the elements of one with a harmless text, which it shows.

    Attributes such as a tip have the text, so only the names of elements are compared.
    """
    harmless, hostile = page("harmless"), page(HOSTILE)
    kinds = [[name for name, _ in elements(each)] for each in (harmless, hostile)]
    return "harmless" in harmless and kinds[0] != [] and kinds[0] == kinds[1]
