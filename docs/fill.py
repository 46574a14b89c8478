"""Writes the pages whose numbers come from records, from their templates; see pages/references.py."""

from __future__ import annotations

import sys

from pages.references import REPOSITORY, fill, page_of, templates

for template in templates():
    page, text = page_of(template), fill(template)
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page.relative_to(REPOSITORY)}", file=sys.stderr)
