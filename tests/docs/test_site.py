"""The site is built without a warning, and asks no other host for anything."""

import os
import re
import subprocess
import sys

import pytest
import site_overflow
from pages import reference, results
from small_run import REPOSITORY

# What a browser fetches on its own when it shows a page; links are followed by the reader.
FETCHED = re.compile(
    r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?://|<link[^>]*rel=\"?(?:stylesheet|preconnect|preload)[^>]*https?://"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    home = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(home)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return home


@pytest.mark.slow
@pytest.mark.process
def test_the_site_is_built_strictly_and_works_offline(site):
    pages = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    for path in {**results.pages(REPOSITORY), **reference.pages(REPOSITORY)}:
        assert path.replace(".md", ".html") in pages
    assert [path for path, text in pages.items() if FETCHED.search(text)] == []
    assert (site / "search/search_index.js").is_file()  # the index as a script: search works from the disk


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_no_code_block_and_no_table_is_cut_on_a_phone_or_in_a_window(site):
    if site_overflow.browser() is None:
        pytest.skip("no Chromium here")
    measured = site_overflow.measure(site)
    assert measured["cut"] == [] and measured["counts"]["table"] > 1000
