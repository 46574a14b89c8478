"""Text that every machine has: the documentation and the source code of Python and of the packages kleiber needs.

docs   pydoc's topics, and docstrings of at least 80 characters; a docstring is a document
code   source files, up to 64 MB; a file is a document

Files are read by `ast` and never imported, in an order that depends on their names alone. Exact duplicates are dropped.
The text depends on the installed versions, which the manifest lists; equal hashes of two corpora mean equal text.

`python -m kleiber.data.builtin < paths` is a worker: for each path it prints a JSON list of docstrings.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kleiber.config.child_process import python_command, safe_environment
from kleiber.config.errors import exit_on_signals, signals_held
from kleiber.config.model_size import available_cores
from kleiber.config.stages import Quantity
from kleiber.data.sources import SPLITS, Document, Source, SourceText, limit_bytes
from kleiber.data.splits import split_by_group
from kleiber.records.progress import activity
from kleiber.types import Json, VocabSize

if TYPE_CHECKING:  # a worker starts without torch, which they import
    from kleiber.data.corpus import TextCorpus


Domain = Literal["docs", "code", "all"]

# fmt: off
PACKAGES = (
    "torch", "transformers", "scipy", "numpy", "pandas", "sympy", "networkx", "lightning", "wandb", "torchmetrics",
    "huggingface_hub", "datasets", "pyarrow", "pydantic", "hydra-core", "omegaconf", "tokenizers", "rich", "typer",
    "click", "jinja2", "fsspec", "aiohttp",
)
# fmt: on
SKIPPED = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}
CODE_BYTES = 64_000_000
FEW_BYTES = 2_000_000  # below this a worker process costs more than it saves
LEAST_CHARACTERS = 80  # shorter docstrings are labels rather than text
BODIES = ("body", "orelse", "finalbody", "handlers")  # fields of a statement that contain statements
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Builtin:
    """The built-in text of one domain, or of both.

    max_bytes  at most that much text of a domain, all splits together
    separator  `bos`, `eos` or a special token of the tokenizer, in front of every document; [A, B]: B after it; `none`;
               null or `auto`: the tokens that the tokenizer puts around a text
    """

    domain: Domain = "docs"
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    max_bytes: Quantity | None = None
    separator: str | list[str] | None = None

    def sources(self) -> list[Source]:
        """Returns the sources of the chosen domains. Raises ValueError for an unknown domain."""
        from kleiber.data.corpus import parse_bytes
        from kleiber.data.token_files import CachedSource

        limit = parse_bytes(self.max_bytes)
        if self.domain not in ("docs", "code", "all"):
            raise ValueError(f"data.domain={self.domain} must be docs, code or all")
        domains: dict[str, Source] = {"docs": Docs(limit), "code": Code(min(limit or CODE_BYTES, CODE_BYTES))}
        chosen = list(domains.values()) if self.domain == "all" else [domains[self.domain]]
        return chosen if self.tokenizer == "bytes" else [CachedSource(source) for source in chosen]

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Encodes the text that is not in the cache, and cuts it into windows of context + 1 tokens."""
        from kleiber.data.corpus import prepare

        settings = (self.tokenizer, self.vocab_size, context, cache)
        return prepare("builtin", self.domain, self.sources(), *settings, separator=self.separator)


@dataclass(frozen=True)
class InstalledText:
    """Text in the source files of the installed packages; a subclass determines which text of a file."""

    max_bytes: int | None

    name = ""

    def identity(self) -> Json:
        return {"name": self.name, "max_bytes": self.max_bytes, "skipped": sorted(SKIPPED), "versions": versions()}

    def texts(self, paths: list[str]) -> Iterator[list[str]]:
        """Yields the texts of each file."""
        raise NotImplementedError

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Yields the documents by split, with near duplicates in the same split, and the packages' versions."""
        distinct = ([text] for text in drop_duplicates(self.texts(source_files())))
        texts = ["".join(document) for document in limit_bytes(distinct, self.max_bytes)]
        documents: dict[str, list[Document]] = {name: [] for name in SPLITS}
        for text, name in zip(texts, split_by_group(texts), strict=True):
            documents[name].append([text])
        yield SourceText(documents, {"versions": versions()})


@dataclass(frozen=True)
class Docs(InstalledText):
    """Docstrings of the installed packages and pydoc's help topics, as documents."""

    name = "builtin/docs"

    def texts(self, paths: list[str]) -> Iterator[list[str]]:
        few = self.max_bytes is not None and self.max_bytes <= FEW_BYTES
        return read_docstrings(paths, workers=0 if few else min(2, available_cores()))


@dataclass(frozen=True)
class Code(InstalledText):
    """Python source code of the installed packages, a document per file."""

    name = "builtin/code"

    def texts(self, paths: list[str]) -> Iterator[list[str]]:
        sources = map(read_source, paths)
        return ([source] if source else [] for source in sources)


@functools.cache  # the installed packages do not change during a run
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@functools.cache
def source_files() -> list[str]:
    """Returns the paths of all source files, by the hash of their names: the first ones are a random sample."""
    paths: dict[str, str] = {}
    for package in versions().keys() - {"python"}:
        distribution = importlib.metadata.distribution(package)
        for file in distribution.files or []:
            if file.suffix == ".py" and not SKIPPED & set(file.parts):
                paths[f"{package}/{file}"] = str(distribution.locate_file(file))
    stdlib = sysconfig.get_path("stdlib")
    for folder, folders, names in os.walk(stdlib):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                paths[f"python/{os.path.relpath(path, stdlib)}"] = path
    return [paths[name] for name in sorted(paths, key=lambda name: (hashlib.blake2b(name.encode()).digest(), name))]


def drop_duplicates(texts: Iterator[list[str]]) -> Iterator[str]:
    """Yields the distinct texts without the white space around them."""
    hashes: set[bytes] = set()
    for text in (text for of_file in texts for text in of_file):
        raw = text.strip().encode("utf-8", "replace")
        digest = hashlib.blake2b(raw, digest_size=12).digest()
        if not raw or digest in hashes:
            continue
        hashes.add(digest)
        yield raw.decode()


def read_source(path: str) -> str | None:
    """Returns the text of a source file in the encoding that it declares; None where it cannot be read as text."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def docstrings(path: str) -> list[str]:
    """Returns the docstrings of at least 80 characters in a file, in order; of pydoc's topics, the topics."""
    text = read_source(path)
    if text is None or ('"""' not in text and "'''" not in text):
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # templates and files for other versions of Python
        return []
    if path.endswith("pydoc_data/topics.py"):
        strings = _dictionary_values(tree)
    else:
        strings = [ast.get_docstring(node, clean=False) for node in (tree, *_definitions([*tree.body]))]
    cleaned = (inspect.cleandoc(text) for text in strings if isinstance(text, str))
    return [text for text in cleaned if len(text) >= LEAST_CHARACTERS]


def _definitions(body: list[ast.AST]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields the classes and functions in a list of statements, and those within them."""
    for node in body:
        if isinstance(node, DEFINITIONS):
            yield node
        fields = dict(ast.iter_fields(node))
        for name in BODIES:
            yield from _definitions(fields.get(name, []))


def _dictionary_values(tree: ast.Module) -> list[object]:
    """Returns the constants among the values of the first dictionary in a file."""
    dictionaries = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    first = next(dictionaries, ast.Dict(keys=[], values=[]))
    return [value.value for value in first.values if isinstance(value, ast.Constant)]


def read_docstrings(paths: list[str], workers: int) -> Iterator[list[str]]:
    """Yields the `docstrings` of every path, in order, read by this process or by `workers` processes in turn.

    The workers are killed when the caller stops reading.
    """
    if workers == 0:
        yield from map(docstrings, paths)
        return
    pool = [_start_worker(paths[k::workers]) for k in range(workers)]
    try:
        with activity("reading docstrings of Python packages (once)", len(paths), "files") as work:
            for i, path in enumerate(work.track(paths)):
                output = pool[i % workers].stdout
                assert output is not None
                line = output.readline()
                if not line:
                    raise RuntimeError(f"the process that reads docstrings died at {path}")
                yield json.loads(line)
    finally:
        for worker in pool:
            worker.kill()
            worker.communicate()


def _start_worker(paths: list[str]) -> subprocess.Popen[str]:
    command, environment = python_command("kleiber.data.builtin"), {**safe_environment(), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as listed:  # the worker has a copy of the open file
        listed.write("".join(f"{path}\n" for path in paths))
        listed.seek(0)
        with signals_held():
            return subprocess.Popen(
                command, stdin=listed, stdout=subprocess.PIPE, env=environment, text=True, encoding="ascii"
            )


def main() -> None:
    """Prints the docstrings of each path on standard input as a line of JSON."""
    warnings.simplefilter("ignore")  # invalid escapes in other people's files
    gc.disable()  # syntax trees have no cycles, and searching them for cycles takes half of the time
    for line in sys.stdin:
        print(json.dumps(docstrings(line.rstrip("\n"))))


if __name__ == "__main__":
    exit_on_signals()
    main()
