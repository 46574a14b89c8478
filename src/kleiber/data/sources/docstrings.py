"""Docstrings of source files, read by `ast` without importing or executing anything, and groups of near duplicates.

`python -m kleiber.data.sources.docstrings < paths` is a worker: one JSON list a line, in the order of the paths.

Texts that are versions of one another go to one split. MinHash (Broder 1997) over shingles of five words, 24 hashes in
8 bands of 3: texts that share a band are joined. A pair with Jaccard similarity J is found with probability
1 - (1 - J^3)^8: 0.997 at 0.8, 0.85 at 0.6, 0.01 at 0.1.
"""

from __future__ import annotations

import ast
import gc
import inspect
import json
import re
import subprocess
import sys
import tempfile
import tokenize
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Integer

LEAST = 80  # characters; shorter ones are labels rather than text
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
BODIES = ("body", "orelse", "finalbody", "handlers")


def source(path: str) -> str | None:
    """The text of a source file in the encoding that it declares; None when it cannot be read as text."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def docstrings(path: str) -> list[str]:
    """Docstrings of at least 80 characters in their order in the file; of pydoc's topics, the topics."""
    text = source(path)
    if text is None or ('"""' not in text and "'''" not in text):
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # templates and files for other versions of Python
        return []
    if path.endswith("pydoc_data/topics.py"):
        strings = [value.value for value in _dict(tree).values if isinstance(value, ast.Constant)]
    else:
        strings = [ast.get_docstring(node, clean=False) for node in (tree, *_definitions(tree.body))]
    cleaned = (inspect.cleandoc(text) for text in strings if isinstance(text, str))
    return [text for text in cleaned if len(text) >= LEAST]


def _definitions(body: list[Any]) -> Iterator[Any]:
    for node in body:
        if isinstance(node, DEFINITIONS):
            yield node
        for name in BODIES:
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                yield from _definitions(inner)


def _dict(tree: ast.Module) -> ast.Dict:
    return next((node for node in ast.walk(tree) if isinstance(node, ast.Dict)), ast.Dict(keys=[], values=[]))


def read_all(paths: list[str], workers: int) -> Iterator[list[str]]:
    """`docstrings` of every path, in order; `workers` processes take turns, and end when the caller stops reading."""
    if workers == 0:
        yield from map(docstrings, paths)
        return
    pool = [_start(paths[k::workers]) for k in range(workers)]
    try:
        for i, path in enumerate(paths):
            out = pool[i % workers].stdout
            assert out is not None
            if not (line := out.readline()):
                raise RuntimeError(f"the reader of docstrings ended at {path}")
            yield json.loads(line)
    finally:
        for worker in pool:
            worker.kill()
            worker.communicate()


def _start(paths: list[str]) -> subprocess.Popen[str]:
    listed = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (the worker reads it after we have left)
    listed.write("".join(f"{path}\n" for path in paths))
    listed.seek(0)
    command = [sys.executable, "-W", "ignore", "-m", "kleiber.data.sources.docstrings"]
    with listed:
        return subprocess.Popen(command, stdin=listed, stdout=subprocess.PIPE, text=True, encoding="ascii")


def main() -> None:
    warnings.simplefilter("ignore")  # invalid escapes in other people's files
    gc.disable()  # syntax trees hold no cycles, and walking them costs half of the time
    for line in sys.stdin:
        print(json.dumps(docstrings(line.rstrip("\n"))))


if __name__ == "__main__":
    main()


SHINGLE, BANDS, ROWS = 5, 8, 3
WORD = re.compile(r"\w+")
PRIMES = np.array([1, 0x100000001B3, 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint64)
MULTIPLIERS = (np.arange(1, BANDS * ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def signature(text: str) -> Integer[np.ndarray, "bands"] | None:
    """One 64-bit value a band; None for a text of fewer than five words, which is like nothing else."""
    words = np.fromiter((zlib.crc32(token.encode()) for token in WORD.findall(text.lower())), np.uint64)
    if len(words) < SHINGLE:
        return None
    shingles = (np.lib.stride_tricks.sliding_window_view(words, SHINGLE) * PRIMES).sum(axis=1, dtype=np.uint64)
    mixed = shingles[:, None] * MULTIPLIERS
    least = (mixed ^ (mixed >> np.uint64(29))).min(axis=0).reshape(BANDS, ROWS)
    return least[:, 0] + least[:, 1] * PRIMES[1] + least[:, 2] * PRIMES[2]


def groups(signatures: Iterable[Integer[np.ndarray, "bands"] | None]) -> list[int]:
    """For each text the number of the first text of its group (union-find over shared bands)."""
    parent: list[int] = []
    first_of: dict[tuple[int, int], int] = {}
    for i, bands in enumerate(signatures):
        parent.append(i)
        for band, value in enumerate([] if bands is None else bands.tolist()):
            other = _root(parent, first_of.setdefault((band, value), i))
            mine = _root(parent, i)
            parent[max(mine, other)] = min(mine, other)
    return [_root(parent, i) for i in range(len(parent))]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def split(texts: list[str], share: float = 0.04) -> Iterator[str]:
    """The split of each text: "validation" and "test" get `share` of the groups each, by the hash of the first text.

    A group of more than a hundredth of all the text goes to train, as it would outweigh everything else in its split.
    """
    group = groups(signature(text) for text in texts)
    size = np.bincount(group, weights=[len(text) for text in texts], minlength=len(texts))
    place = {i: zlib.crc32(texts[i].encode("utf-8", "replace")) / 2**32 for i in set(group)}
    small = [i for i in sorted(place, key=lambda i: (place[i], i)) if size[i] <= max(0.01 * size.sum(), 10_000)]
    named = {i: "validation" if place[i] < share else "test" for i in small if place[i] < 2 * share}
    for name, i in zip(("validation", "test"), [i for i in small if i not in named], strict=False):
        if name not in named.values():  # so little text that none fell into this split
            named[i] = name
    return (named.get(g, "train") for g in group)
