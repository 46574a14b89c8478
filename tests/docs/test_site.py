"""The site is built without a warning, and asks no other host for anything."""

import os
import re
import subprocess
import sys

import pytest
from pages import reference, results
from small_run import REPOSITORY

# What a browser fetches on its own when it shows a page; links are followed by the reader.
FETCHED = re.compile(
    r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?://|<link[^>]*rel=\"?(?:stylesheet|preconnect|preload)[^>]*https?://"
)


@pytest.mark.slow
@pytest.mark.process
def test_the_site_is_built_strictly_and_works_offline(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {str(path.relative_to(tmp_path / "site")): path.read_text() for path in tmp_path.rglob("*.html")}
    for path in {**results.pages(REPOSITORY), **reference.pages(REPOSITORY)}:
        assert path.replace(".md", ".html") in pages
    assert [path for path, text in pages.items() if FETCHED.search(text)] == []
    assert (tmp_path / "site/search/search_index.js").is_file()  # the index as a script: search works from the disk
