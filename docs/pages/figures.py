"""Draws the figures of the recorded studies from their rows, as `kleiber report` does, for the site.

Git keeps one figure of each page; the others are drawn when the site is built. They stay in .cache/figures until the
rows or the code that draws them change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from multiprocessing import get_context
from pathlib import Path

CACHE = ".cache/figures"
CODE = ("src/**/*.py", "src/**/*.yaml", "conf/**/*.yaml")  # names of choices are in the headers of configs
# What `kleiber report` writes and people write; everything else in a folder is what it reads.
RESULTS = ("figures", "*.md", "*.html", "*.png", "findings.json", "laws.json", "interaction.json")


@cache
def code_hash(repository: Path) -> bytes:
    """Returns a hash of the code and the configs that figures depend on."""
    return content_hash(path for pattern in CODE for path in sorted(repository.glob(pattern)))


def content_hash(files: Iterable[Path]) -> bytes:
    """Returns a hash of the content of files in their order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def place_of(folder: Path, also: Sequence[Path], repository: Path) -> Path:
    """Returns the folder in the cache for the figures of a study; another one where its rows or the code differ.

    also  folders of the studies that are analyzed together with it
    """
    ignored = shutil.ignore_patterns(*RESULTS)
    rows = [
        path
        for home in (folder, *also)
        for path in sorted(home.rglob("*"))
        if path.is_file() and not ignored("", list(path.relative_to(home).parts))
    ]
    key = hashlib.sha256(code_hash(repository) + content_hash(rows)).hexdigest()[:16]
    return repository / CACHE / f"{folder.name}-{key}"


def draw_all(sources: Mapping[Path, tuple[Path, Sequence[Path]]]) -> None:
    """Draws the figures that are not in the cache, in as many processes as there are cores.

    sources  by the folder in the cache: the folder of the study, and those that are analyzed together with it
    """
    missing = {place: source for place, source in sources.items() if not place.is_dir()}
    home = str(Path(__file__).parents[1])
    if home not in sys.path:  # MkDocs has it there only while it loads the hooks; the processes begin with this path
        sys.path.append(home)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for drawn in [pool.submit(draw, place, *source) for place, source in missing.items()]:
            drawn.result()


def draw(place: Path, folder: Path, also: Sequence[Path]) -> None:
    """Draws the figures of a study into `place`, and removes those of earlier rows or code."""
    from kleiber.studies.report import report

    for earlier in place.parent.glob(f"{folder.name}-{'?' * 16}*"):
        shutil.rmtree(earlier)
    working = place.with_name(f"{place.name}.part")
    shutil.copytree(folder, working, ignore=shutil.ignore_patterns(*RESULTS))
    with open(os.devnull, "w") as quiet, redirect_stdout(quiet), redirect_stderr(quiet):
        report(working, also=also)
    working.rename(place)
