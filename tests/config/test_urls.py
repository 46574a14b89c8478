"""Names of data that fsspec opens, and those that stand for several files."""

import pytest

from kleiber.config.urls import is_pattern, is_url


@pytest.mark.parametrize(
    ("path", "url", "pattern"),
    [("s3://a/b", True, True), ("a/*.txt", False, True), ("a/[ab]", False, True), ("a/b.txt", False, False)],
)
def test_urls_and_patterns_are_told_from_paths(path, url, pattern):
    assert (is_url(path), is_pattern(path)) == (url, pattern)
