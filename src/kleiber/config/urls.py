"""Which names of data are URLs or patterns. Imports no torch."""

from __future__ import annotations

from pathlib import Path

WILDCARDS = "*?["


def is_url(path: Path | str) -> bool:
    """Whether a path is one that fsspec opens, such as s3://bucket/file."""
    return "://" in str(path)


def is_pattern(path: str) -> bool:
    """Whether a path is a URL, or has a wildcard of fsspec's `glob`."""
    return is_url(path) or any(sign in path for sign in WILDCARDS)
