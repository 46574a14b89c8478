"""Text that every machine has: the documentation and the sources of Python and of the packages kleiber stands on.

docs   pydoc's topics, and docstrings of at least 80 characters; a docstring is a document
code   source files, up to 64 MB; a file is a document

Files are read, never imported, in an order that depends on their names alone. Exact duplicates are dropped; near
duplicates go to one split (see `near`). What the text is depends on the installed versions: the manifest names them,
and corpora of two machines are the same when their hashes are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kleiber.data.cache import SPLITS, Document, Reading, Source
from kleiber.data.corpus import TextCorpus, as_bytes, prepare
from kleiber.data.sources.docstrings import read_all, source, split
from kleiber.data.token_files import Kept

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Builtin:
    """The built-in corpus. `max_bytes` stops reading after that much text of a domain, all splits together."""

    domain: Domain = "docs"
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    max_bytes: int | float | str | None = None

    def sources(self) -> list[Source]:
        """The chosen domains as sources. Raises ValueError for an unknown domain."""
        limit = as_bytes(self.max_bytes)
        if self.domain not in ("docs", "code", "all"):
            raise ValueError(f"data.domain={self.domain} is not one of docs, code, all")
        domains: dict[str, Source] = {"docs": Docs(limit), "code": Code(min(limit or CODE_BYTES, CODE_BYTES))}
        chosen = list(domains.values()) if self.domain == "all" else [domains[self.domain]]
        return chosen if self.tokenizer == "bytes" else [Kept(source) for source in chosen]

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        return prepare("builtin", self.domain, self.sources(), self.tokenizer, self.vocab_size, context, cache)


@dataclass(frozen=True)
class _Installed:
    """What the two domains share: which files there are, in which order, and from which versions."""

    max_bytes: int | None

    name = ""

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "max_bytes": self.max_bytes, "skipped": sorted(SKIPPED), "versions": versions()}

    def texts(self, paths: list[str]) -> Iterator[list[str]]:
        """The texts of each file."""
        raise NotImplementedError

    @contextmanager
    def reading(self, root: Path) -> Iterator[Reading]:
        """All texts by split, near duplicates in one split."""
        texts = list(_limited(self.texts(files()), self.max_bytes, self.name))
        parts: dict[str, list[Document]] = {name: [] for name in SPLITS}
        for text, name in zip(texts, split(texts), strict=True):
            parts[name].append([text])
        yield Reading(parts, {"versions": versions()})


@dataclass(frozen=True)
class Docs(_Installed):
    """pydoc's topics and docstrings."""

    name = "builtin/docs"

    def texts(self, paths: list[str]) -> Iterator[list[str]]:
        few = self.max_bytes is not None and self.max_bytes <= FEW_BYTES
        return read_all(paths, workers=0 if few else min(2, len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Code(_Installed):
    """Source files."""

    name = "builtin/code"

    def texts(self, paths: list[str]) -> Iterator[list[str]]:
        return ([text] if (text := source(path)) else [] for path in paths)


@functools.cache  # what is installed does not change while we run
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are there."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@functools.cache
def files() -> list[str]:
    """Paths of all source files, in the order of the hash of their names: any prefix is a fair sample."""
    named: dict[str, str] = {}
    for package in versions().keys() - {"python"}:
        distribution = importlib.metadata.distribution(package)
        for file in distribution.files or []:
            if file.suffix == ".py" and not SKIPPED & set(file.parts):
                named[f"{package}/{file}"] = str(distribution.locate_file(file))
    stdlib = sysconfig.get_path("stdlib")
    for folder, folders, names in os.walk(stdlib):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                named[f"python/{os.path.relpath(path, stdlib)}"] = path
    return [named[name] for name in sorted(named, key=lambda name: (hashlib.blake2b(name.encode()).digest(), name))]


def _limited(texts: Iterator[list[str]], limit: int | None, name: str) -> Iterator[str]:
    """Texts without exact duplicates, the last one cut at `limit` bytes; a line of progress every five seconds."""
    marks: set[bytes] = set()
    total, reported, began = 0, time.monotonic(), time.monotonic()
    for text in (text for of_file in texts for text in of_file):
        raw = text.strip().encode("utf-8", "replace")
        mark = hashlib.blake2b(raw, digest_size=12).digest()
        if not raw or mark in marks:
            continue
        marks.add(mark)
        raw = raw if limit is None else raw[: limit - total]
        yield raw.decode("utf-8", "ignore")
        total += len(raw)
        if time.monotonic() - reported > 5:
            reported = time.monotonic()
            log.info("%s: %.0f MB read in %.0f s (done once, then kept)", name, total / 1e6, reported - began)
        if limit is not None and total >= limit:
            return
