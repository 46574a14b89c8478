"""Text in a column of a CSV file, read with Python's own csv module."""

import csv
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.config.stages import Quantity
from kleiber.data.corpus import TextCorpus, parse_bytes, prepare
from kleiber.data.sources import SourceText, limit_bytes
from kleiber.types import Json
from kleiber.types.access import DataPath


@dataclass(frozen=True)
class Csv:
    """Each row of the file at `path` is a document; every tenth is validation text, and the others training text.

    max_bytes  at most that much text of each split
    """

    path: DataPath
    column: str = "text"
    tokenizer: str = "bytes"
    max_bytes: Quantity | None = None

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def identity(self) -> Json:
        content = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        return {"csv": content, "column": self.column, "max_bytes": self.max_bytes}

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or self.column not in rows[0]:
            raise ConfigError(f"data.column={self.column} must be a column of {self.path}")
        texts = [row[self.column] for row in rows]
        splits = {"train": [text for i, text in enumerate(texts) if i % 10], "validation": texts[::10]}
        limit = parse_bytes(self.max_bytes)
        documents = {name: limit_bytes(([text] for text in split), limit) for name, split in splits.items()}
        yield SourceText(documents, {"config": "", "rows": {name: len(split) for name, split in splits.items()}})

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        if not Path(self.path).is_file():
            raise ConfigError(f"data.path={self.path} must be a CSV file")
        return prepare(self.name, "", [self], self.tokenizer, None, context, cache)
