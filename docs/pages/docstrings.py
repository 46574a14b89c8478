"""Docstrings as the API page shows them: the arguments, which stand as `name   description` lines, become a list."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

from pages.signatures import ENTRY

QUOTED = re.compile(r'^ *"([\w/.]+)" {2,}(\S.*)$')  # the names of metrics


class ArgumentLists(griffe.Extension):
    """Rewrites every docstring of kleiber before mkdocstrings renders it as Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of one class or function."""
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(docstring: str) -> str:
    """Returns a docstring whose lines of arguments are items of a Markdown list."""
    lines, in_entry = list[str](), False
    for line in inspect.cleandoc(docstring).splitlines():
        if match := ENTRY.match(line) or QUOTED.match(line):
            if not in_entry and lines and lines[-1]:
                lines.append("")
            lines.append(f"- `{match.group(1)}`: {match.group(2)}")
            in_entry = True
        elif in_entry and line.startswith("    "):
            lines[-1] += f" {line.strip()}"
        else:
            in_entry = False
            lines.append(line)
    return "\n".join(lines)
