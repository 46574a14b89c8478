"""Docstrings out of source files, by `ast`: nothing is imported or executed. Run as a worker, it imports only `ast`.

python -m kleiber.data.docstrings < paths        one JSON list a line, in the order of the paths
"""

from __future__ import annotations

import ast
import gc
import inspect
import json
import subprocess
import sys
import tempfile
import tokenize
import warnings
from collections.abc import Iterator
from typing import Any

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
        found = [value.value for value in _dict(tree).values if isinstance(value, ast.Constant)]
    else:
        found = [ast.get_docstring(node, clean=False) for node in (tree, *_definitions(tree.body))]
    cleaned = (inspect.cleandoc(text) for text in found if isinstance(text, str))
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
    command = [sys.executable, "-W", "ignore", "-m", "kleiber.data.docstrings"]
    with listed:
        return subprocess.Popen(command, stdin=listed, stdout=subprocess.PIPE, text=True, encoding="ascii")


def main() -> None:
    warnings.simplefilter("ignore")  # invalid escapes in other people's files
    gc.disable()  # syntax trees hold no cycles, and walking them costs half of the time
    for line in sys.stdin:
        print(json.dumps(docstrings(line.rstrip("\n"))))


if __name__ == "__main__":
    main()
